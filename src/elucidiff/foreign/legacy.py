"""Torch files from before the zip format: five pickles, then the numbers of each storage.

The pickles are a magic number, the version, facts about the machine that wrote it, the object, and the keys of its
storages. For each key follow a count (int64) and that many numbers. Files up to PyTorch 1.5 have this
form, and so have the bytes in which any later version pickles a single storage.
"""

from __future__ import annotations

from typing import Any

from ..errors import FormatError
from .pickles import U8, Machine, Meaning
from .records import Storage, clip
from .storages import fill, new_storage, part, persistent_id

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


def is_legacy(head: bytes) -> bool:
    """Whether a file begins with the magic number as a pickle of protocol 2 (the default) to 5."""
    integer = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")
    start = 11 if head[2:3] == b"\x95" else 2  # protocols 4 and 5 may begin with a frame
    return head[:1] == b"\x80" and head.startswith(integer, start)


def read_legacy(view: memoryview, meaning: Meaning) -> Any:
    """The object of an old-format torch file that takes the whole of `view`. Raises FormatError."""
    storages: dict[str, Storage] = {}
    dtypes: dict[str, Any] = {}
    views: dict[tuple[str, str], Storage] = {}

    def storage(value: Any) -> Storage:
        dtype, key, numel, viewed = persistent_id(value)
        if key not in storages:
            storages[key] = new_storage(dtype, numel, len(view) - machine.position, meaning.budget)
            dtypes[key] = dtype
        if (dtypes[key], storages[key].flat.numel()) != (dtype, numel):
            raise FormatError(f"names the storage {clip(key)} twice with different types or lengths")
        if viewed is None:
            return storages[key]
        if type(viewed) is not tuple or not viewed or type(viewed[0]) is not str:
            raise FormatError("has a storage with a view of an unknown form")
        return views.setdefault((key, viewed[0]), part(storages[key], viewed))

    machine = Machine(view, meaning, 0, storage)
    _read_head(machine, meaning)
    value = _next(machine)
    _fill(machine, _next(machine), storages)
    if machine.position != len(view):
        raise FormatError(f"has {len(view) - machine.position:,} bytes after the last storage")
    return value


def _next(machine: Machine) -> Any:
    """The next pickle of the same file: each begins with an empty stack and memo."""
    machine.stack, machine.outer, machine.memo = [], [], {}
    return machine.run()


def _read_head(machine: Machine, meaning: Meaning) -> None:
    """The first three pickles. They are the same in each storage of a pickle, and are interpreted once."""
    known = meaning.legacy_head
    if known and machine.view[: len(known)] == known:
        machine.position = len(known)
        return
    _check_head(_next(machine), _next(machine), _next(machine))
    meaning.legacy_head = bytes(machine.view[: machine.position])


def _check_head(magic: Any, version: Any, system: Any) -> None:
    if type(magic) is not int or magic != MAGIC:
        raise FormatError("does not begin with the magic number of torch files")
    if type(version) is not int or version != VERSION:
        raise FormatError(f"is of an unknown version of the old torch format; expected {VERSION}")
    little = isinstance(system, dict) and system.get("little_endian", True)
    if little is not True:
        raise FormatError("was written on a big-endian machine, which is not supported")


def _fill(machine: Machine, keys: Any, storages: dict[str, Storage]) -> None:
    if not isinstance(keys, list) or any(type(k) is not str for k in keys) or len(set(keys)) != len(keys):
        raise FormatError("has no list of distinct keys of storages")
    if set(keys) != set(storages):
        raise FormatError("lists other storages than its object uses")
    for key in keys:
        flat = storages[key].flat
        count = U8.unpack(machine.take(8))[0]
        if count != flat.numel():
            raise FormatError(f"has a storage of {count:,} numbers that was announced with {flat.numel():,}")
        fill(storages[key], machine.take(count * flat.dtype.itemsize))
