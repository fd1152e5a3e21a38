"""CIFAR-10 and CIFAR-100 as their authors give them: pickles (the python version) or records of bytes (the binary)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import FormatError
from ..foreign import read
from .archives import MAX_MEMBER
from .dataset import Dataset
from .tars import packed

PIXELS = 3 * 32 * 32
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary")
TARS = re.compile(r"cifar-100?-(python|binary)\.(tar\.gz|tgz)")
MEMBERS = re.compile(
    r"((data_batch_[1-5]|test_batch|train|test)(\.bin)?|batches\.meta(\.txt)?|meta|fine_label_names\.txt)"
)


@dataclass(frozen=True)
class Version:
    """One of the four: how its files are called, and where classes and labels stand in them."""

    name: str
    train: tuple[str, ...]
    test: str
    meta: str
    meta_key: str  # of the class names in the pickle `meta`; "": `meta` is a text, one name a line
    label_key: str  # of the labels in a pickle; "": a file of records
    label_bytes: int  # before the pixels of a record; the last is the class
    classes: int


_BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
VERSIONS = (
    Version("cifar-10", _BATCHES, "test_batch", "batches.meta", "label_names", "labels", 0, 10),
    Version("cifar-10", tuple(f"{b}.bin" for b in _BATCHES), "test_batch.bin", "batches.meta.txt", "", "", 1, 10),
    Version("cifar-100", ("train",), "test", "meta", "fine_label_names", "fine_labels", 0, 100),
    Version("cifar-100", ("train.bin",), "test.bin", "fine_label_names.txt", "", "", 2, 100),
)


def is_cifar(path: Path) -> bool:
    """Whether a folder, file or tar is called as CIFAR's are."""
    return _version(path) is not None or bool(TARS.fullmatch(path.name) and path.is_file())


def read_cifar(path: Path, part: str | None = None) -> Dataset:
    """The data set of CIFAR's folder, of its .tar.gz, or of one of its files.

    part: "train" (the default; all batches) or "test"; a file is that batch alone. Labels are the ten classes, or
    the hundred fine ones. The pickles are read without executing anything of theirs.
    """
    with _unpacked(path) as place:
        version = _version(place)
        if version is None:
            raise FormatError(f"{path}: none of CIFAR's files in it, such as {', '.join(v.test for v in VERSIONS)}")
        folder = _inner(place)
        wanted = (version.test,) if part == "test" else version.train
        files = [folder / name for name in wanted] if folder.is_dir() else [place]
        for file in files:
            if not file.is_file():
                raise FormatError(f"{path}: {file.name} is missing")
        parts = [_records(file, version) if version.label_bytes else _pickle(file, version) for file in files]
        classes = _class_names((folder if folder.is_dir() else place.parent) / version.meta, version)
    values, labels, names = (list(column) for column in zip(*parts, strict=True))
    return Dataset(
        np.concatenate(values),
        np.concatenate(labels),
        classes,
        f"{version.name}-{part}" if part else version.name,
        str(path),
        version.classes,
        sum(names, ()) if all(names) else None,
    )


def _version(path: Path) -> Version | None:
    folder = _inner(path)
    for version in VERSIONS:
        if folder.is_dir():
            known = (*version.train, version.test)
            # `train` and `test` may be anybody's; CIFAR-100's have `meta` beside them.
            named = folder.name in FOLDERS or version.classes == 10 or (folder / version.meta).is_file()
            if named and any((folder / name).is_file() for name in known):
                return version
        elif path.name in (*version.train, version.test) and path.is_file():
            named = version.classes == 10 or (path.parent / version.meta).is_file()
            if named:
                return version
    return None


def _inner(path: Path) -> Path:
    """The folder of the files: the one given, or CIFAR's own folder in it."""
    return next((path / name for name in FOLDERS if (path / name).is_dir()), path)


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A tar's members under the names that CIFAR's files have, in a folder for the time being; else the path itself."""
    if not TARS.fullmatch(path.name) or path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        for member in packed(path):
            name = PurePosixPath(member.name).name
            if MEMBERS.fullmatch(name):
                (Path(temporary) / name).write_bytes(member.content)
        try:
            yield Path(temporary)
        except FormatError as error:
            raise FormatError(str(error).replace(str(Path(temporary) / "_")[:-1], f"{path}: ")) from error


def _pickle(file: Path, version: Version) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    table = _table(file)
    pixels, labels, names = table.get("data"), table.get(version.label_key), table.get("filenames")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
        raise FormatError(f"{file}: data: expected an array of bytes (N, {PIXELS})")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(k) is int for k in labels):
        raise FormatError(f"{file}: {version.label_key}: expected a list of {len(pixels)} whole numbers")
    named = isinstance(names, list) and len(names) == len(pixels) and all(type(name) is str for name in names)
    return *_checked(file, pixels, np.array(labels, dtype=object), version), tuple(names or ()) if named else ()


def _table(file: Path) -> dict[Any, Any]:
    table = read(file)
    if not isinstance(table, dict):
        raise FormatError(f"{file}: holds a {type(table).__name__}; expected CIFAR's dictionary")
    return table


def _records(file: Path, version: Version) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    size, record = file.stat().st_size, version.label_bytes + PIXELS
    if size == 0 or size % record or size > MAX_MEMBER:
        raise FormatError(f"{file}: {size:,} bytes; expected a multiple of {record:,}, the length of a record")
    rows = np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, record)
    return *_checked(file, rows[:, version.label_bytes :], rows[:, version.label_bytes - 1], version), ()


def _checked(file: Path, pixels: np.ndarray, labels: np.ndarray, version: Version) -> tuple[np.ndarray, np.ndarray]:
    if not len(pixels):
        raise FormatError(f"{file}: holds no images")
    if labels.min() < 0 or labels.max() >= version.classes:
        raise FormatError(f"{file}: labels: {labels.min()} to {labels.max()}; expected 0 to {version.classes - 1}")
    return np.ascontiguousarray(pixels).reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _class_names(file: Path, version: Version) -> tuple[str, ...] | None:
    """The names of the classes, where the file that lists them is there."""
    if not file.is_file():
        return None
    if version.meta_key:
        names = _table(file).get(version.meta_key)
    else:
        names = [
            line.strip() for line in file.read_bytes()[:65536].decode("utf-8", "replace").splitlines() if line.strip()
        ]
    if not isinstance(names, list) or len(names) != version.classes or not all(type(name) is str for name in names):
        raise FormatError(f"{file}: expected the names of {version.classes} classes")
    return tuple(names)
