"""Arrays of any rank: .npy and .npz files, read without pickle and with the declared shape checked first."""

from __future__ import annotations

import io
import math
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ..errors import FormatError
from .dataset import Dataset
from .labels import check_class_names, check_label_array, finite_float32

VALUE_KEYS = ("images", "data", "x", "latents", "samples", "arr_0")
LABEL_KEYS = ("labels", "y")
CHANNELS = (1, 3, 4)
MAX_RANK = 32  # numpy's own limit before version 2


def from_arrays(
    values: np.ndarray,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] | None = None,
    *,
    name: str = "arrays",
    source: str = "",
) -> Dataset:
    """A data set from arrays as people keep them.

    uint8 of rank 4 are images: (N, H, W, C) when the last size is 1, 3 or 4 and the second is not, else
    (N, C, H, W); of rank 3, grey images (N, H, W). A fourth channel is alpha, and must be opaque.
    Floating arrays of any rank become float32 and stay as they are; rank 1 becomes (N, 1). Other
    integers are refused, since their range is unknown. Raises FormatError naming the field.
    """
    where = source or name
    x = _values(np.asarray(values), f"{where}: values")
    y = None if labels is None else check_label_array(np.asarray(labels), len(x), f"{where}: labels")
    check_class_names(y, classes, f"{where}: classes")
    return Dataset(x, y, classes, name, source)


def _values(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim == 0 or array.size == 0:
        raise FormatError(f"{where}: shape {array.shape}; expected at least one sample along the first axis")
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        return _images(array, where)
    if array.dtype.kind == "f":
        return finite_float32(array.reshape(len(array), -1) if array.ndim == 1 else array, where)
    if array.dtype.kind in "iu" and array.ndim in (3, 4) and 0 <= array.min() <= array.max() <= 255:
        hint = "if these are levels of pixels: astype('uint8'); else "
    else:
        hint = ""
    raise FormatError(
        f"{where}: {array.dtype} {array.shape}; {hint}images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), "
        "anything else floating: astype('float32') and scale it to a standard deviation near 0.5"
    )


def _images(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[3] in CHANNELS and array.shape[1] not in CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] == 4:
        if array[:, 3].min() != 255:
            raise FormatError(f"{where}: the fourth channel (alpha) has transparent pixels; drop it: images[..., :3]")
        array = array[:, :3]
    return np.ascontiguousarray(array)


def read_npy(path: Path) -> Dataset:
    """The data set of a .npy file: one array of samples."""
    with path.open("rb") as file:
        values = _read_array(file, path.stat().st_size, str(path))
    return from_arrays(values, name=path.stem, source=str(path))


def sample_of_npy(content: bytes, where: str) -> np.ndarray:
    """One sample in npy form, as `from_arrays` would make it: uint8 (C, H, W) for an image, else float32."""
    return _values(_read_array(io.BytesIO(content), len(content), where)[None], where)[0]


def read_npz(path: Path) -> Dataset:
    """The data set of a .npz file: samples under images, data, x, latents or arr_0; labels or y; classes; condition."""
    arrays = _members(path, (*VALUE_KEYS, *LABEL_KEYS, "classes", "condition"))
    values, labels = _one(arrays, VALUE_KEYS, path), _one(arrays, LABEL_KEYS, path)
    if values is None:
        raise FormatError(f"{path}: no array named {', '.join(VALUE_KEYS)}")
    classes = _names(arrays["classes"], f"{path}: classes") if "classes" in arrays else None
    dataset = from_arrays(values, labels, classes, name=path.stem, source=str(path))
    if "condition" not in arrays:
        return dataset
    try:
        return replace(dataset, condition=_values(arrays["condition"], f"{path}: condition"))
    except ValueError as error:
        raise FormatError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _one(arrays: dict[str, np.ndarray], keys: tuple[str, ...], path: Path) -> np.ndarray | None:
    found = [key for key in keys if key in arrays]
    if len(found) > 1:
        raise FormatError(f"{path}: {' and '.join(found)} could both be meant; keep one")
    return arrays[found[0]] if found else None


def _names(array: np.ndarray, where: str) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind != "U":
        raise FormatError(f"{where}: {array.dtype} {array.shape}; expected names, dtype U, shape (K,)")
    return tuple(str(name) for name in array)


def _members(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                if key in wanted:
                    with archive.open(info) as file:
                        arrays[key] = _read_array(file, info.file_size, f"{path}: {key}")
            return arrays
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # zipfile and zlib raise half a dozen types on damaged archives
        raise FormatError(f"{path}: not an npz file, or a damaged one ({error})") from error


def _read_array(file: IO[bytes], size: int, where: str) -> np.ndarray:
    """One array in npy form, whose header must declare exactly the bytes that are there."""
    try:
        shape, fortran, dtype = _header(file)
        count, present = math.prod(shape), size - file.tell()
    except Exception as error:  # a damaged header is parsed by ast and the tokenizer, which raise many types
        raise FormatError(f"{where}: not an npy array ({error})") from error
    if dtype.kind not in "biufcU" or dtype.itemsize == 0:
        raise FormatError(f"{where}: {dtype} is not read; only plain numbers are")
    if len(shape) > MAX_RANK or min(shape, default=0) < 0 or count * dtype.itemsize != present:
        raise FormatError(f"{where}: declares {dtype} {shape}, but holds {present:,} bytes")
    check_memory(present, where)
    array = np.empty(count, dtype)
    if _fill(file, array.view(np.uint8).data) != present:
        raise FormatError(f"{where}: ends early")
    return array.reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version}")
    return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)


def _fill(file: IO[bytes], target: memoryview) -> int:
    done = 0
    while done < len(target):
        block = file.read(min(1 << 24, len(target) - done))
        if not block:
            break
        target[done : done + len(block)] = block
        done += len(block)
    return done


def check_memory(size: int, where: str) -> None:
    """Raise FormatError when a file declares more bytes than the machine has memory."""
    total = 64 << 30
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > total:
        raise FormatError(f"{where}: {size / 2**30:.1f} GiB of data; this machine has {total / 2**30:.1f} GiB")
