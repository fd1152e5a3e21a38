"""Storages and tensors of torch files: looked at only within their bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import FormatError
from .records import Budget, Global, Storage, clip

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_LARGEST = 1 << 60  # of every size, stride and offset: no product of what passes the checks overflows in int64


def persistent_id(value: Any) -> tuple[torch.dtype, str, int, Any]:
    """(dtype, key, numel, view) of ("storage", type, key, location, numel[, view])."""
    if type(value) is not tuple or len(value) not in (5, 6) or value[0] != "storage":
        raise FormatError(f"has a persistent id that is no storage: {clip(_kinds(value))}")
    _, kind, key, location, numel = value[:5]
    good = isinstance(kind, Global) and kind.module in STORAGE_MODULES and kind.name in DTYPES
    if not good or type(key) is not str or type(location) is not str:
        raise FormatError(f"has a persistent id of an unknown form: {clip(_kinds(value))}")
    return DTYPES[kind.name], key, whole(numel, "the length of a storage"), value[5] if len(value) == 6 else None


def _kinds(value: Any) -> str:
    return ", ".join(type(v).__name__ for v in value) if isinstance(value, tuple) else type(value).__name__


def whole(value: Any, what: str) -> int:
    """An integer from 0 to 2^60. Raises FormatError naming what it should be."""
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise FormatError(f"has {clip(value) if type(value) is int else type(value).__name__} for {what}")
    return value


def whole_numbers(value: Any, what: str) -> tuple[int, ...]:
    """At most 64 integers from 0 to 2^60."""
    if not isinstance(value, (tuple, list)) or len(value) > 64:
        raise FormatError(f"has no sequence of at most 64 numbers for {what}")
    return tuple(whole(v, what) for v in value)


def new_storage(dtype: torch.dtype, numel: int, available: int, budget: Budget) -> Storage:
    """A storage to be filled from a file that has `available` bytes left. Raises FormatError for more than that."""
    size = numel * dtype.itemsize
    if size > available:
        raise FormatError(f"announces a storage of {size:,} bytes where {available:,} are left")
    budget.spend("storage_bytes", size)
    budget.check_time()
    return Storage(torch.empty(numel, dtype=dtype))


def fill(storage: Storage, raw: memoryview) -> None:
    """Copy little-endian bytes into a storage. Raises FormatError for another length and for booleans but 0 and 1."""
    size = storage.flat.numel() * storage.flat.dtype.itemsize
    if len(raw) != size:
        raise FormatError(f"has {len(raw):,} bytes for a storage of {size:,}")
    if not size:
        return
    source = np.frombuffer(raw, np.uint8)
    if storage.flat.dtype == torch.bool and source.max() > 1:
        raise FormatError("has a boolean that is neither 0 nor 1")
    np.copyto(storage.flat.view(torch.uint8).numpy(), source)


def part(storage: Storage, view: Any) -> Storage:
    """The storage that a view (key, offset, length) names."""
    if type(view) is not tuple or len(view) != 3:
        raise FormatError("has a storage with a view of an unknown form")
    offset, numel = whole(view[1], "the offset of a view"), whole(view[2], "the length of a view")
    if offset + numel > storage.flat.numel():
        raise FormatError(f"has a view of {offset} + {numel} numbers into a storage of {storage.flat.numel():,}")
    return Storage(storage.flat[offset : offset + numel])


def tensor(storage: Any, offset: Any, size: Any, stride: Any, budget: Budget) -> Tensor:
    """The tensor of a size and strides within a storage.

    Raises FormatError where it would reach outside, and where two of its elements would share a place:
    a tensor that is larger than its storage costs nothing until somebody copies it.
    """
    if not isinstance(storage, Storage):
        raise FormatError(f"makes a tensor of {type(storage).__name__}; expected a storage")
    offset = whole(offset, "the offset of a tensor")
    sizes, strides = whole_numbers(size, "the size of a tensor"), whole_numbers(stride, "the strides of a tensor")
    if len(sizes) != len(strides):
        raise FormatError(f"has a tensor of {len(sizes)} sizes and {len(strides)} strides")
    length, dtype = storage.flat.numel(), storage.flat.dtype
    last = offset if 0 in sizes else offset + _reach(sizes, strides)
    if offset > length or (last >= length and 0 not in sizes):
        raise FormatError(f"has a tensor {sizes} that reaches number {last:,} of a storage of {length:,}")
    numel = 0 if 0 in sizes else _product(sizes)
    budget.spend("tensors")
    budget.spend("viewed_bytes", numel * dtype.itemsize)
    if not numel:
        return storage.flat.new_empty(_bounded(sizes))
    return torch.as_strided(storage.flat, sizes, strides, offset + storage.flat.storage_offset())


def _bounded(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if _product(tuple(max(n, 1) for n in sizes)) >= _LARGEST:  # torch multiplies the non-zero sizes for the strides
        raise FormatError(f"has an empty tensor of the impossible size {clip(str(sizes))}")
    return sizes


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for n in sizes:
        total *= n
    return total


def _reach(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The distance from the first element to the last. Raises FormatError where two elements coincide."""
    reach = 0
    for stride, n in sorted((s, n) for n, s in zip(sizes, strides, strict=True) if n > 1):
        if stride <= reach:
            raise FormatError(
                f"has a tensor of size {clip(str(sizes))}, strides {clip(str(strides))} that overlaps itself"
            )
        reach += stride * (n - 1)
    return reach
