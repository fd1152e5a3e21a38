"""An interpreter of pickles that executes nothing: opcodes become plain data and inert records.

All opcodes of protocols 0 to 5, as pickletools.opcodes describes them. No name is imported, nothing is
called, and no attribute is set on the word of a file; what a call of a known name stands for (a tensor,
an array) is the business of the `Meaning`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import FormatError
from .machine import F8, I4, INTEGER, MARKS, U1, U2, U4, U8, Machine, Meaning, name_of, opcode
from .records import Global, Key, Record, clip

__all__ = ["U8", "Machine", "Meaning", "key"]
_HASHED_BY_CONTENT = (str, bytes, bool, type(None), float)


# ---- constants and numbers


def _constants() -> None:
    for code, value in ((b"N", None), (b"\x88", True), (b"\x89", False), (b")", ())):
        opcode(code)(lambda m, value=value: m.stack.append(value))  # type: ignore[misc]
    for code, make in ((b"]", list), (b"}", dict), (b"\x8f", set)):
        opcode(code)(lambda m, make=make: m.stack.append(make()))  # type: ignore[misc]
    for code, form in ((b"M", U2), (b"J", I4), (b"G", F8)):
        opcode(code)(lambda m, form=form: m.stack.append(m.number(form)))  # type: ignore[misc]


def _texts_and_bytes() -> None:
    for code, form in ((b"\x8c", U1), (b"X", U4), (b"\x8d", U8)):
        opcode(code)(lambda m, form=form: m.stack.append(m.text(m.number(form))))  # type: ignore[misc]
    for code, form in ((b"C", U1), (b"B", U4), (b"\x8e", U8), (b"\x96", U8)):
        opcode(code)(lambda m, form=form: m.stack.append(m.bytes_(m.number(form))))  # type: ignore[misc]
    for code, form in ((b"U", U1), (b"T", I4)):
        opcode(code)(lambda m, form=form: m.stack.append(_old_text(bytes(m.take(m.number(form))))))  # type: ignore[misc]


_constants()
_texts_and_bytes()


def _old_text(raw: bytes) -> str | bytes:
    """A string of Python 2, which says nothing of its encoding: text if it is ASCII."""
    return raw.decode("ascii") if raw.isascii() else raw


@opcode(b"I")
def _int(m: Machine) -> None:
    line = m.line()
    m.stack.append(line == b"01" if line in (b"00", b"01") else _decimal(line))


@opcode(b"L")
def _long(m: Machine) -> None:
    m.stack.append(_decimal(m.line().removesuffix(b"L")))


def _decimal(line: bytes) -> int:
    if not re.fullmatch(rb"[+-]?\d{1,150}", line):
        raise FormatError(f"has {clip(line)} where a whole number belongs")
    return int(line)


@opcode(b"F")
def _float(m: Machine) -> None:
    m.stack.append(float(m.line()))


def _binary_long(m: Machine, size: int) -> None:
    if size > INTEGER:
        raise FormatError(f"has an integer of {size:,} bytes; at most {INTEGER} are read")
    m.stack.append(int.from_bytes(m.take(size), "little", signed=True))


opcode(b"\x8a")(lambda m: _binary_long(m, m.number(U1)))
opcode(b"\x8b")(lambda m: _binary_long(m, m.number(I4)))


@opcode(b"V")
def _unicode(m: Machine) -> None:
    m.stack.append(m.long_line().decode("raw_unicode_escape"))


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_PLAIN = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\", b"'": b"'", b'"': b'"', b"a": b"\a", b"b": b"\b",
          b"f": b"\f", b"v": b"\v"}  # fmt: skip


@opcode(b"S")
def _string(m: Machine) -> None:
    line = m.long_line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise FormatError(f"has the string {clip(line)} without its quotes")
    m.stack.append(_old_text(_ESCAPE.sub(_unescaped, line[1:-1])))


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code in _PLAIN:
        return _PLAIN[code]
    if code[:1] == b"x" and len(code) == 3:
        return bytes([int(code[1:], 16)])
    if code.isdigit() and int(code, 8) < 256:
        return bytes([int(code, 8)])
    raise FormatError(f"has the unknown escape {clip(match[0])} in a string")


# ---- containers


def _tuple_of(n: int) -> Callable[[Machine], None]:
    def make(m: Machine) -> None:
        if len(m.stack) < n:
            raise IndexError
        m.stack[-n:] = [tuple(m.stack[-n:])]

    return make


for _code, _n in ((b"\x85", 1), (b"\x86", 2), (b"\x87", 3)):
    opcode(_code)(_tuple_of(_n))
opcode(b"t")(lambda m: _push(m, tuple(m.items())))
opcode(b"l")(lambda m: _push(m, m.items()))
opcode(b"\x91")(lambda m: _push(m, frozenset(key(v) for v in m.items())))


def _push(m: Machine, value: Any) -> None:
    """Onto the stack as it is after `m.items()`, which replaces the list."""
    m.stack.append(value)


@opcode(b"d")
def _dict(m: Machine) -> None:
    items = m.items()
    m.stack.append({})
    _set_items(m, items)


opcode(b"a")(lambda m: _append(m, [m.stack.pop()]))
opcode(b"e")(lambda m: _append(m, m.items()))
opcode(b"s")(lambda m: _set_items(m, [m.stack.pop(), m.stack.pop()][::-1]))
opcode(b"u")(lambda m: _set_items(m, m.items()))


def _append(m: Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if isinstance(target, Record):
        target.items = target.items or []
        target = target.items
    if not isinstance(target, list):
        raise FormatError(f"appends to {_article(target)}")
    target.extend(items)


def _set_items(m: Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if isinstance(target, Record):
        target.pairs = {} if target.pairs is None else target.pairs
        target = target.pairs
    if not isinstance(target, dict):
        raise FormatError(f"sets an item of {_article(target)}")
    if len(items) % 2:
        raise FormatError("has a dictionary with a key without a value")
    for k, v in zip(items[::2], items[1::2], strict=True):
        target[key(k)] = v


@opcode(b"\x90")
def _add_items(m: Machine) -> None:
    items = m.items()
    if not isinstance(m.stack[-1], set):
        raise FormatError(f"adds to {_article(m.stack[-1])}")
    m.stack[-1].update(key(v) for v in items)


def key(value: Any) -> Any:
    """The value if hashing it is harmless, else wrapped. Raises FormatError for what cannot be a key."""
    if isinstance(value, _HASHED_BY_CONTENT) or (type(value) is int and -(1 << 60) < value < 1 << 60):
        return value
    if isinstance(value, (list, dict, set)):
        raise FormatError(f"has {_article(value)} as a key")
    return Key(value)


def _article(value: Any) -> str:
    return f"a value of type {type(value).__name__}"


# ---- stack and memo


@opcode(b"(")
def _mark(m: Machine) -> None:
    if len(m.outer) >= MARKS:
        raise FormatError(f"has more than {MARKS} open marks")
    m.outer.append(m.stack)
    m.stack = []


@opcode(b"0")
def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.items()  # as in pickle: POP removes a mark that is on top


opcode(b"1")(lambda m: _discard(m.items()))
opcode(b"2")(lambda m: m.stack.append(m.stack[-1]))


def _discard(items: list[Any]) -> None:
    items.clear()


def _put(m: Machine, index: int) -> None:
    if index < 0:
        raise FormatError(f"stores a value under the number {index}")
    m.memo[index] = m.stack[-1]


def _get(m: Machine, index: int) -> None:
    m.stack.append(m.memo[index])


@opcode(b"\x94")
def _memoize(m: Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


# The three most frequent opcodes with an argument have one byte of it: written out, since a call costs more.
@opcode(b"q")
def _put_byte(m: Machine) -> None:
    m.memo[m.view[m.position]] = m.stack[-1]
    m.position += 1


@opcode(b"h")
def _get_byte(m: Machine) -> None:
    m.stack.append(m.memo[m.view[m.position]])
    m.position += 1


@opcode(b"K")
def _int_byte(m: Machine) -> None:
    m.stack.append(m.view[m.position])
    m.position += 1


opcode(b"r")(lambda m: _put(m, m.number(U4)))
opcode(b"p")(lambda m: _put(m, _memo_number(m.line())))
opcode(b"j")(lambda m: _get(m, m.number(U4)))
opcode(b"g")(lambda m: _get(m, _memo_number(m.line())))


def _memo_number(line: bytes) -> int:
    number = _decimal(line)
    if not 0 <= number < 1 << 32:
        raise FormatError(f"refers to the stored value {clip(line)}")
    return number


# ---- names, calls, states


@opcode(b"c")
def _global(m: Machine) -> None:
    module, name = m.line().decode("utf-8"), m.line().decode("utf-8")
    m.stack.append(m.meaning.name(module, name))


@opcode(b"\x93")
def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise FormatError("imports something whose name is not a text")
    m.stack.append(m.meaning.name(module, name))


def _function(value: Any) -> Global:
    if not isinstance(value, Global):
        raise FormatError(f"calls {_article(value)}")
    return value


def _arguments(value: Any) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise FormatError(f"calls with {_article(value)} for arguments")
    return value


@opcode(b"R")
def _reduce(m: Machine) -> None:
    args, function = _arguments(m.stack.pop()), _function(m.stack.pop())
    m.stack.append(m.meaning.call(function, args))


@opcode(b"\x81")
def _newobj(m: Machine) -> None:
    args, cls = _arguments(m.stack.pop()), _function(m.stack.pop())
    m.stack.append(m.meaning.new(cls, args, None))


@opcode(b"\x92")
def _newobj_ex(m: Machine) -> None:
    kwargs, args, cls = m.stack.pop(), _arguments(m.stack.pop()), _function(m.stack.pop())
    if not isinstance(kwargs, dict):
        raise FormatError(f"calls with {_article(kwargs)} for keyword arguments")
    m.stack.append(m.meaning.new(cls, args, kwargs))


@opcode(b"i")
def _inst(m: Machine) -> None:
    module, name = m.line().decode("utf-8"), m.line().decode("utf-8")
    items = m.items()
    m.stack.append(m.meaning.call(m.meaning.name(module, name), tuple(items)))


@opcode(b"o")
def _obj(m: Machine) -> None:
    function, *args = m.items()
    m.stack.append(m.meaning.call(_function(function), tuple(args)))


@opcode(b"b")
def _build(m: Machine) -> None:
    state = m.stack.pop()
    m.meaning.build(m.stack[-1], state)


@opcode(b"P")
def _persistent_line(m: Machine) -> None:
    raise FormatError("has a persistent id in text form; torch writes none")


@opcode(b"Q")
def _persistent(m: Machine) -> None:
    if m.persistent is None:
        raise FormatError("has a persistent id outside a torch file")
    m.stack.append(m.persistent(m.stack.pop()))


# ---- framing, and what no file of weights has


@opcode(b"\x80")
def _protocol(m: Machine) -> None:
    version = m.number(U1)
    if version > 5:
        raise FormatError(f"is of pickle protocol {version}; 0 to 5 are known")


@opcode(b"\x95")
def _frame(m: Machine) -> None:
    size = m.number(U8)
    if size > len(m.view) - m.position:
        raise FormatError(f"announces a frame of {size:,} bytes where {len(m.view) - m.position:,} are left")


def _refuse(m: Machine) -> NoReturn:
    name = name_of(m.view[m.position - 1])
    raise FormatError(f"uses {name} (extension registry or out-of-band buffers), which no file of weights has")


for _code in (b"\x82", b"\x83", b"\x84", b"\x97", b"\x98"):
    opcode(_code)(_refuse)
