"""The machine that interprets a pickle: its stack, its memo, its arguments. The opcodes are in pickles.py."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from ..errors import FormatError
from .records import Budget, Global, clip

LINE = 1024  # longest line of the opcodes that end in a line feed, in bytes
INTEGER = 64  # longest integer, in bytes
VIEWED = 4096  # longer bytes stay where they are in the file, and the value is a read-only memoryview
MARKS = 1000  # open marks
_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}


class Meaning(Protocol):
    """What names, calls and states stand for."""

    budget: Budget
    legacy_head: bytes  # the first three pickles of an old torch file, when they have been found good

    def name(self, module: str, name: str) -> Global:
        """A name that is imported."""

    def call(self, function: Global, args: tuple[Any, ...]) -> Any:
        """The value of function(*args)."""

    def new(self, cls: Global, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> Any:
        """The value of cls.__new__(cls, *args, **kwargs)."""

    def build(self, value: Any, state: Any) -> None:
        """value.__setstate__(state)."""


class Machine:
    """The pickle machine over the bytes of `view`, from `position` on; `persistent` resolves persistent ids."""

    table: ClassVar[dict[int, Callable[[Machine], None]]] = {}

    def __init__(
        self,
        view: memoryview,
        meaning: Meaning,
        position: int = 0,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.view, self.meaning, self.budget = view, meaning, meaning.budget
        self.position, self.persistent = position, persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the open marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of one pickle; `position` is then behind it. Raises FormatError, and nothing else."""
        view, table = self.view, self.table
        code, start, count = 0, self.position, 0
        try:
            while True:
                start = self.position
                code = view[start]
                self.position = start + 1
                if code == 0x2E:  # STOP
                    return self._stop()
                count += 1
                if not count & 255:
                    self._spend(256)
                table[code](self)
        except FormatError as error:
            text = str(error)
            raise FormatError(text if "(at byte" in text else f"{text} (at byte {start:,})") from None
        except (IndexError, struct.error) as error:
            at_end = self.position >= len(view) and code in b"hqK"  # those that take one byte
            cut = start >= len(view) or at_end or isinstance(error, struct.error)
            offence = "ends too early" if cut else f"{name_of(code)} finds the stack empty"
        except KeyError:
            offence = (
                f"has no opcode {name_of(code)}" if code not in table else f"{name_of(code)}: nothing stored there"
            )
        except Exception as error:  # whatever it is: a file must not choose the type of an error
            offence = f"{name_of(code)}: {type(error).__name__}: {clip(str(error))}"
        finally:
            self.budget.operations -= count & 255
        raise FormatError(f"{offence} (at byte {start:,})")

    def _spend(self, operations: int) -> None:
        self.budget.spend("operations", operations)
        self.budget.check_time()

    def _stop(self) -> Any:
        value = self.stack.pop()
        if self.stack or self.outer:
            raise FormatError("stops with values left on the stack")
        self.budget.spend("operations", 0)
        return value

    # ---- arguments

    def take(self, n: int) -> memoryview:
        """The next n bytes."""
        if n < 0 or n > len(self.view) - self.position:
            raise FormatError(f"announces {n:,} bytes where {len(self.view) - self.position:,} are left")
        self.position += n
        return self.view[self.position - n : self.position]

    def number(self, form: struct.Struct) -> Any:
        """The next number of a binary form."""
        value = form.unpack_from(self.view, self.position)[0]
        self.position += form.size
        return value

    def line(self, limit: int = LINE) -> bytes:
        """The text up to the next line feed, without it."""
        window, end = LINE, -1
        while end < 0 and window <= max(limit, LINE):
            ahead = bytes(self.view[self.position : self.position + window])
            end = ahead.find(b"\n")
            if end < 0 and len(ahead) < window:
                break
            window *= 4
        if not 0 <= end <= limit:
            raise FormatError(f"has a line without end, or one longer than {limit} bytes")
        self.position += end + 1
        return ahead[:end]

    def long_line(self) -> bytes:
        """The same for texts, which may be long."""
        line = self.line(4 * len(self.view))
        self.budget.spend("text", len(line))
        return line

    def items(self) -> list[Any]:
        """The values above the last mark, which is removed."""
        found, self.stack = self.stack, self.outer.pop()
        self.budget.operations -= len(found)
        return found

    def text(self, n: int) -> str:
        """The next n bytes as text."""
        raw = self.take(n)
        self.budget.spend("text", n)
        return str(raw, "utf-8")

    def bytes_(self, n: int) -> bytes | memoryview:
        """The next n bytes."""
        raw = self.take(n)
        return raw if n > VIEWED else bytes(raw)


def name_of(code: int) -> str:
    """An opcode's name in pickletools."""
    return _NAMES.get(code, f"0x{code:02x}")


U1, U2, U4, U8, I4, F8 = (struct.Struct(f) for f in ("<B", "<H", "<I", "<Q", "<i", ">d"))


def opcode(code: bytes) -> Callable[[Callable[[Machine], None]], Callable[[Machine], None]]:
    """Enter a function in the machine's table."""

    def enter(function: Callable[[Machine], None]) -> Callable[[Machine], None]:
        Machine.table[code[0]] = function
        return function

    return enter
