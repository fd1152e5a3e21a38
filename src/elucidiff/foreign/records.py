"""What a pickle becomes: plain data, and inert records of whatever else it asks for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..errors import FormatError


@dataclass(eq=False, slots=True)
class Global:
    """A name that a pickle imports. Nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True, repr=False)
class Record:
    """An object that a pickle would make by calling `function(*args, **kwargs)`. Nothing is called.

    `state` is what it would hand to __setstate__, `items` what it would append, `pairs` what it would
    set as items; None where it does no such thing.
    """

    function: Global
    args: tuple[Any, ...] = ()
    kwargs: dict[Any, Any] | None = None
    state: Any = None
    items: list[Any] | None = None
    pairs: dict[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"<{self.function}>"


@dataclass(eq=False, slots=True)
class Key:
    """A key of a dictionary or member of a set that is hashed by its identity and not by its content.

    A number or a tuple with a hash of the writer's choice makes a dictionary quadratic.
    """

    value: Any


@dataclass(eq=False, slots=True)
class Storage:
    """The numbers of one storage, a tensor (n,), to be looked at by tensors."""

    flat: Tensor


@dataclass(eq=False, slots=True)
class Dtype:
    """A NumPy dtype under construction: a pickle gives its code first and its byte order later."""

    code: str
    order: Literal["<", ">", "=", "|"] = "="

    def numpy(self) -> np.dtype[Any]:
        """The dtype."""
        return np.dtype(self.code).newbyteorder(self.order)


@dataclass
class Budget:
    """What the reading of one file may cost, nested files included.

    The file's own size bounds the rest: legitimate files hold every number once.
    """

    size: int  # bytes of the file
    operations: int = 1_000_000  # opcodes and items; the published snapshots have 60,000
    tensors: int = 100_000
    depth: int = 200  # of containers in containers
    expanded: int = 10_000_000  # values counted as often as they can be reached
    files: int = 100_000  # torch files within the file

    def __post_init__(self) -> None:
        self.storage_bytes = self.size
        self.text = 4 * self.size + 1024  # protocols 0 to 2 write bytes as text, which is then encoded
        self.viewed_bytes = 4 * self.size + 1024  # of all tensors: several may share a storage
        self.seconds = 20.0 + self.size / 50e6
        self.deadline = time.monotonic() + self.seconds

    def spend(self, what: str, amount: int = 1) -> None:
        """Take from a budget. Raises FormatError when it is used up."""
        left = getattr(self, what) - amount
        setattr(self, what, left)
        if left < 0:
            raise FormatError(f"needs more {what.replace('_', ' ')} than a file of {self.size:,} bytes may")

    def check_time(self) -> None:
        """Raise FormatError after the deadline."""
        if time.monotonic() > self.deadline:
            raise FormatError(f"takes longer to read than {self.seconds:.0f} s")


def clip(value: object, length: int = 80) -> str:
    """A text from a file, fit for a one-line message."""
    text = value if isinstance(value, str) else ascii(value)
    text = text[: length + 1].encode("ascii", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= length else text[: length - 3] + "..."


def check_shape_of(value: Any, budget: Budget) -> None:
    """Raise FormatError for data that contain themselves, are nested too deep, or unfold to too much.

    Everything downstream may then walk the data by plain recursion. Counts a value as often as it can
    be reached: a list of ten references to a list of ten references and so on is small in the file only.
    """
    sizes: dict[int, tuple[int, int]] = {}  # of containers that are done: values, depth
    begun: set[int] = set()
    todo: list[tuple[Any, list[Any] | None]] = [(value, None)]
    while todo:
        node, inner = todo.pop()
        mine = id(node)
        if inner is not None:
            done = [sizes[id(c)] for c in inner if isinstance(c, CONTAINERS)]
            sizes[mine] = len(inner) + 1 + sum(n for n, _ in done), 1 + max((d for _, d in done), default=0)
            _check_totals(*sizes[mine], budget)
        elif mine in sizes or not isinstance(node, CONTAINERS):
            continue
        elif mine in begun:
            raise FormatError("holds an object that contains itself")
        elif not (inner := children(node)):
            sizes[mine] = 1, 1
        else:
            begun.add(mine)
            budget.spend("operations", len(inner))
            todo.append((node, inner))
            todo.extend((c, None) for c in inner if isinstance(c, CONTAINERS))


def _check_totals(size: int, depth: int, budget: Budget) -> None:
    if size > budget.expanded:
        raise FormatError(f"unfolds to more than {budget.expanded:,} values")
    if depth > budget.depth:
        raise FormatError(f"is nested more than {budget.depth} deep")


CONTAINERS = (list, tuple, dict, set, frozenset, Record, Key)


def children(node: Any) -> list[Any]:
    """What a container holds."""
    if isinstance(node, dict):
        return [*node.keys(), *node.values()]
    if isinstance(node, Record):
        return [v for v in (node.args, node.kwargs, node.state, node.items, node.pairs) if v is not None]
    if isinstance(node, Key):
        return [node.value]
    return list(node)
