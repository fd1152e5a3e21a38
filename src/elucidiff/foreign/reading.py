"""Files that strangers wrote: what they hold, and what they would have done."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..errors import FormatError
from .archives import read_zip
from .legacy import is_legacy, read_legacy
from .meanings import Meanings
from .pickles import Machine
from .records import Budget, check_shape_of, clip

FORMATS = {
    "torch zip": "a torch file (zip)",
    "torch legacy": "a torch file of the old format",
    "pickle": "a pickle",
    "safetensors": "a safetensors file",
}


@dataclass(frozen=True)
class Inspection:
    """What a file is, found without executing anything of it."""

    path: str
    format: str  # a key of FORMATS
    size: int  # bytes
    tensors: int
    numbers: int  # in all tensors
    names: dict[str, int] = field(default_factory=dict)  # every name it imports, and how often
    executes: dict[str, int] = field(default_factory=dict)  # what unpickling would call, and how often
    unknown: dict[str, int] = field(default_factory=dict)  # names that no file of weights needs: `read` refuses them
    sources: dict[str, tuple[int, str]] = field(default_factory=dict)  # class -> bytes and SHA-256 of embedded source

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {FORMATS[self.format]}, {self.size:,} bytes",
            f"{self.tensors} tensors of {self.numbers:,} numbers",
        ]
        for title, names in (("would call", self.executes), ("does not belong in weights", self.unknown)):
            lines += [f"{title}: {name} ({n} times)" for name, n in sorted(names.items())]
        for name, (length, digest) in sorted(self.sources.items()):
            lines.append(f"would execute source of {name}: {length:,} bytes, SHA-256 {digest}")
        return "\n".join(lines)


def read(path: str | Path) -> Any:
    """What a file of weights holds, as plain data: nothing of it is imported, called or executed.

    Numbers, texts, bytes (long ones as read-only memoryviews), lists, tuples, dictionaries, sets, torch
    tensors (on the CPU, without gradients), NumPy arrays, and `Record` for objects of known classes. Reads torch
    files (zip and old format), pickles and safetensors, whatever the file is called.

    Raises FileNotFoundError; FormatError naming the file and the offence for everything else that is wrong,
    which includes every name that plain weights do not need.
    """
    with _named(path), _opened(path) as view:
        return _value(view, Meanings(Budget(len(view))), path)


def inspect(path: str | Path) -> Inspection:
    """What a file is and what it would execute if it were unpickled. Raises as `read`, but names are not refused."""
    with _named(path), _opened(path) as view:
        meanings = Meanings(Budget(len(view)), strict=False)
        found = [t for t in walk(_value(view, meanings, path)) if isinstance(t, Tensor)]
        return Inspection(
            path=str(path),
            format=format_of(view),
            size=len(view),
            tensors=len(found),
            numbers=sum(t.numel() for t in found),
            names=dict(meanings.names),
            executes={".".join(where): n for where, n in meanings.calls.items()},
            unknown=dict(meanings.unknown),
            sources=dict(meanings.sources),
        )


def tensors(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """The state dict of a file: its names and tensors.

    Where a file holds several ("model", "ema", "state_dict"), `key` chooses one, with dots for a dictionary in a
    dictionary. Raises as `read`, and ValueError that lists the choices when `key` names none or is needed.
    """
    with _named(path):
        value = read(path)
    return state_dict(value, str(path), key)


def state_dict(value: Any, path: str, key: str | None = None) -> dict[str, Tensor]:
    """The state dict within what `read` gave, see `tensors`."""
    choices = dict(_state_dicts(value, ""))
    if not choices:
        raise FormatError(f"{path}: holds no tensors by name; expected a state dict")
    if key is None and len(choices) == 1:
        return next(iter(choices.values()))
    if key is None or key not in choices:
        listed = ", ".join(f"{clip(name) or '(top level)'} ({len(d)} tensors)" for name, d in choices.items())
        raise ValueError(f"{path}: key: got {key!r}; this file holds several state dicts: {listed}")
    return choices[key]


def _state_dicts(value: Any, prefix: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(value, dict) or prefix.count(".") > 3:
        return
    own = {name: t for name, t in value.items() if isinstance(name, str) and isinstance(t, Tensor)}
    if own:
        yield prefix, own
    for name, inner in value.items():
        if isinstance(name, str):
            yield from _state_dicts(inner, f"{prefix}.{name}" if prefix else name)


def walk(value: Any) -> Iterator[Any]:
    """Every value within what `read` gave, each object once."""
    from .records import CONTAINERS, children

    seen: set[int] = set()
    todo = [value]
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, CONTAINERS):
            todo.extend(children(node))


def format_of(view: memoryview) -> str:
    """A key of FORMATS, from a file's first bytes. Raises FormatError for anything else."""
    head = bytes(view[:64])
    if head.startswith(b"PK"):
        return "torch zip"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= len(view) - 8:
        return "safetensors"
    if is_legacy(head):
        return "torch legacy"
    if head[:1] and head[:1] in b"\x80(])}cNIJKLMSUVXFGi":
        return "pickle"
    if b"ustar" in bytes(view[:512]):
        raise FormatError("is a tar, the torch format of before 2017; load and save it with a later PyTorch")
    raise FormatError(f"is none of these: {', '.join(FORMATS.values())}")


def is_foreign(path: str | Path) -> bool:
    """Whether a file begins as one that `read` reads."""
    try:
        with _named(path), _opened(path) as view:
            return bool(format_of(view))
    except FormatError:
        return False


def _value(view: memoryview, meanings: Meanings, path: str | Path) -> Any:
    kind = format_of(view)
    if kind == "safetensors":
        return load_file(path)
    readers: dict[str, Callable[[memoryview, Meanings], Any]] = {
        "torch zip": read_zip,
        "torch legacy": read_legacy,
        "pickle": _read_pickle,
    }
    value = readers[kind](view, meanings)
    check_shape_of(value, meanings.budget)
    return value


def _read_pickle(view: memoryview, meanings: Meanings) -> Any:
    machine = Machine(view, meanings)
    value = machine.run()
    if machine.position != len(view):
        raise FormatError(f"has {len(view) - machine.position:,} bytes after its end")
    return value


@contextmanager
def _opened(path: str | Path) -> Iterator[memoryview]:
    """The bytes of a file, mapped: what is not looked at is not read."""
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not file.is_file():
        raise FormatError("is no regular file")
    if file.stat().st_size == 0:
        raise FormatError("is empty")
    with file.open("rb") as handle:
        # Closed when the last view is gone: an inert result may hold views of long bytes.
        yield memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Every error becomes a FormatError that names the file; FileNotFoundError stays."""
    try:
        yield
    except FileNotFoundError:
        raise
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None
    except Exception as error:  # a file must not choose the type of an error
        raise FormatError(f"{path}: cannot be read: {type(error).__name__}: {clip(str(error), 200)}") from error
