"""Modules in the pickles that NVIDIA's training codes publish: class, arguments and state dict, without their source.

Such an object is a call of torch_utils.persistence._reconstruct_persistent_obj(meta), meta = {type, version,
module_src, class_name, state}. The reference loader executes module_src, makes an object of the class and gives it the
state, the __dict__ of a torch module with _init_args and _init_kwargs beside. Here the state is read as data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FormatError
from .meanings import PERSISTENT
from .reading import _named, read
from .records import Record, clip


@dataclass(frozen=True)
class PublishedModule:
    """A module as published. `state` is named and ordered as module.state_dict() would be."""

    class_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: dict[str, Tensor]
    children: dict[str, PublishedModule] = field(default_factory=dict)  # the modules it holds directly
    source_sha256: str = ""  # of the source that was embedded, and not executed

    def arguments(self, *positional: str) -> dict[str, Any]:
        """The arguments of __init__ by name; `positional` names those that were given by position.

        Raises FormatError for more arguments than names, and for one given twice.
        """
        if len(self.args) > len(positional):
            raise FormatError(
                f"{self.class_name} has {len(self.args)} arguments by position; {len(positional)} are known"
            )
        given = dict(zip(positional, self.args, strict=False))
        twice = set(given) & set(self.kwargs)
        if twice:
            raise FormatError(f"{self.class_name} has the argument {min(twice)} twice")
        return given | self.kwargs


def modules(path: str | Path) -> dict[str, PublishedModule]:
    """The modules of a snapshot, by key ("ema", "G", ...); a file that is a single module has it under "".

    Raises FileNotFoundError; FormatError for everything else that is wrong, and when there is no module.
    """
    with _named(path):
        return modules_in(read(path))


def modules_in(value: Any) -> dict[str, PublishedModule]:
    """The modules within what `read` gave, see `modules`."""
    items = value if isinstance(value, Mapping) else {"": value}
    found = {k: module(v) for k, v in items.items() if isinstance(k, str) and is_module(v)}
    if not found:
        raise FormatError("holds no module in the published form")
    return found


def is_module(value: Any) -> bool:
    """Whether a record is a torch module that embeds its source."""
    return is_persistent(value) and "_parameters" in _state(value)


def is_persistent(value: Any) -> bool:
    """Whether a record is an object that embeds its source."""
    return isinstance(value, Record) and (value.function.module, value.function.name) == PERSISTENT


def module(record: Record) -> PublishedModule:
    """The module of a record. Raises FormatError when it is none, or holds something but tensors and modules."""
    return _module(record, 0)


def _module(record: Any, depth: int) -> PublishedModule:
    if not isinstance(record, Record) or depth > 50:
        raise FormatError(f"has {type(record).__name__} where a module belongs")
    meta = _meta(record) if is_persistent(record) else {"class_name": record.function.name}
    state = _state(record)
    inner = {name: value for name, value in _part(state, "_modules").items() if value is not None}
    children = {name: _module(value, depth + 1) for name, value in inner.items()}
    tensors = _own_tensors(state)
    for name, child in children.items():
        tensors.update({f"{name}.{rest}": t for rest, t in child.state.items()})
    source = meta.get("module_src")
    args, kwargs = state.get("_init_args", ()), state.get("_init_kwargs", {})
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict) or any(type(k) is not str for k in kwargs):
        raise FormatError("has a module whose arguments have no form")
    return PublishedModule(
        class_name=clip(str(meta.get("class_name"))),
        args=tuple(args),
        kwargs=dict(kwargs),
        state=tensors,
        children=children,
        source_sha256=hashlib.sha256(source.encode()).hexdigest() if isinstance(source, str) and not depth else "",
    )


def _own_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters, then buffers that are saved."""
    passing = state.get("_non_persistent_buffers_set", set())
    passing = passing if isinstance(passing, (set, frozenset)) else set()
    buffers = {k: v for k, v in _part(state, "_buffers").items() if k not in passing}
    own = {**_part(state, "_parameters"), **buffers}
    for name, value in own.items():
        if value is not None and not isinstance(value, Tensor):
            raise FormatError(f"has {type(value).__name__} where the tensor {clip(name)} belongs")
    return {name: value for name, value in own.items() if value is not None}


def _part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = state.get(name, {})
    if not isinstance(part, dict) or any(type(k) is not str for k in part):
        raise FormatError(f"has a module whose {name} are no dictionary")
    return part


def _meta(record: Record) -> dict[str, Any]:
    if len(record.args) != 1 or not isinstance(record.args[0], dict):
        raise FormatError("has an object with embedded source of an unknown form")
    meta = record.args[0]
    if meta.get("type") != "class" or type(meta.get("class_name")) is not str:
        raise FormatError("has an object with embedded source that is of no class")
    return meta


def _state(record: Record) -> dict[str, Any]:
    """The __dict__ that an object would get: within meta, or by BUILD."""
    state = _meta(record).get("state") if is_persistent(record) else record.state
    state = record.state if state is None else state
    return state if isinstance(state, dict) else {}
