"""The original files of MNIST and its like: idx, a header of sizes and the bytes, perhaps within gzip."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np

from ..errors import FormatError
from .arrays import check_memory
from .dataset import Dataset
from .labels import check_label_array

IMAGES = re.compile(r"(.*)images([-.])idx3-ubyte(\.gz)?")
GZIP_RATIO = 1032  # no gzip file expands further
UNSIGNED_BYTES = 0x08


def images_in(folder: Path, part: str | None = None) -> Path | None:
    """The file of images in a folder: of the training set, or of the test set (t10k) for part "test"; None without any.

    Raises FormatError where several could be meant.
    """
    found = sorted(p for p in folder.iterdir() if p.is_file() and IMAGES.fullmatch(p.name))
    if len(found) > 1 or (found and part is not None):
        wanted = ("t10k", "test") if part == "test" else ("train",)
        found = [p for p in found if any(word in p.name for word in wanted)]
        if len({p.name.removesuffix(".gz") for p in found}) != 1:
            raise FormatError(f"{folder}: {len(found)} files of {part or 'train'} images in it; name one of them")
    return found[0] if found else None


def read_idx(images: Path) -> Dataset:
    """The data set of a file of images, ...images-idx3-ubyte[.gz], with the labels beside it where they are.

    The labels are in the file of the same name with labels for images and idx1 for idx3.
    """
    values = read_array(images, 3)[:, None]
    file = labels_of(images)
    labels = None if file is None else check_label_array(read_array(file, 1), len(values), str(file))
    stem = images.name.removesuffix(".gz")
    return Dataset(values, labels, name=re.split(r"[-.]images", stem)[0], source=str(images))


def labels_of(images: Path) -> Path | None:
    """The file of labels that belongs to a file of images; None where there is none."""
    match = IMAGES.fullmatch(images.name)
    if match is None:
        return None
    for separator in (match[2], "-", "."):
        for ending in (match[3] or "", "", ".gz"):
            file = images.with_name(f"{match[1]}labels{separator}idx1-ubyte{ending}")
            if file.is_file():
                return file
    return None


def read_array(path: Path, rank: int) -> np.ndarray:
    """The array of an idx file: uint8 of this rank. Raises FormatError for another, and for a byte too many or few."""
    compressed = path.name.endswith(".gz")
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            return _array(cast("IO[bytes]", file), path.stat().st_size * (GZIP_RATIO if compressed else 1), rank, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(f"{path}: damaged gzip ({error})") from error


def _array(file: IO[bytes], most: int, rank: int, path: Path) -> np.ndarray:
    header = file.read(4 + 4 * rank)
    if len(header) < 4 + 4 * rank or header[:2] != b"\0\0" or header[2] != UNSIGNED_BYTES or header[3] != rank:
        raise FormatError(
            f"{path}: begins with {header[:4].hex(' ')}; expected 00 00 08 {rank:02x}, an idx file of bytes"
        )
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4")[1:])
    count = math.prod(shape)
    if count == 0 or count > most:
        raise FormatError(f"{path}: declares {shape}, which {'is empty' if count == 0 else 'is more than it can hold'}")
    check_memory(count, str(path))
    content = file.read(count + 1)
    if len(content) != count:
        raise FormatError(
            f"{path}: declares {shape}, but holds {'more' if len(content) > count else len(content)} bytes"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
