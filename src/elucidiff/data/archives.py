"""Collections of image files: a folder, or a ZIP as the published tools write it, read member by member."""

from __future__ import annotations

import re
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import FormatError
from .images import OTHER_IMAGES, SUFFIXES, decode
from .label_csv import LABELS_CSV, labels_beside, labels_of_csv
from .labels import check_class_names, labels_in_order, parse_dataset_json

Progress = Callable[[int, int], None]

MAX_MEMBER = 256 * 2**20  # bytes: an uncompressed colour image at the cap on pixels has 192 MiB
MAX_RATIO = 200  # of a member over 1 MiB; images are compressed already, JSON shrinks 20-fold
SHARD = re.compile(r"\d{5}")  # 00000/img00000000.png: how the published tools number folders; not a class


class Files(Protocol):
    """Named files of a collection; names are relative with forward slashes."""

    path: Path
    names: list[str]

    def read(self, name: str) -> bytes:
        """The content of one file; threads may ask at once."""

    def state(self, name: str) -> list[int]:
        """Numbers that differ where the file is another one: its size and its date, or its CRC-32."""


class Folder:
    """The files under a folder, at any depth; hidden ones do not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = (p.relative_to(path) for p in path.rglob("*") if p.is_file())
        self.names = sorted(p.as_posix() for p in files if not any(part.startswith(".") for part in p.parts))

    def read(self, name: str) -> bytes:
        """The content of one file, refused when it is larger than any image."""
        file = self.path / name
        if file.stat().st_size > MAX_MEMBER:
            raise FormatError(f"{file}: {file.stat().st_size:,} bytes; at most {MAX_MEMBER:,} are read")
        return file.read_bytes()

    def state(self, name: str) -> list[int]:
        """Size and date in nanoseconds."""
        state = (self.path / name).stat()
        return [state.st_size, state.st_mtime_ns]


class Archive:
    """The members of an open ZIP, checked by the central directory before anything is decompressed."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._members = self._checked(archive.infolist())
        self.names = sorted(name for name in self._members if not name.startswith(("__MACOSX/", ".")))

    def _checked(self, infos: Sequence[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            fault = "occurs twice" if info.filename in members else _fault(info)
            if fault:
                raise FormatError(f"{self.path}: {info.filename!r} {fault}")
            if not info.is_dir():
                members[info.filename] = info
        # Members that share their bytes are how a small archive becomes a huge one.
        if sum(info.compress_size for info in infos) > self.path.stat().st_size:
            raise FormatError(f"{self.path}: members overlap")
        return members

    def read(self, name: str) -> bytes:
        """The content of one member; its CRC is checked."""
        try:
            return self._archive.read(self._members[name])
        except Exception as error:  # zipfile and zlib raise half a dozen types on damaged members
            raise FormatError(f"{self.path}: {name!r} is damaged ({error})") from error

    def state(self, name: str) -> list[int]:
        """Size and CRC-32."""
        return [self._members[name].file_size, self._members[name].CRC]


def _fault(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if ".." in name.split("/") or name.startswith("/") or "\\" in name or ":" in name.split("/")[0]:
        return "leads outside the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "has a compression other than store and deflate"
    if info.file_size > MAX_MEMBER:
        return f"has {info.file_size:,} bytes; at most {MAX_MEMBER:,} are read"
    if info.file_size > max(2**20, MAX_RATIO * info.compress_size):
        return f"expands more than {MAX_RATIO}-fold"
    return ""


@contextmanager
def opened(path: Path) -> Iterator[Files]:
    """The files of a folder or of a ZIP, which stays open for the block."""
    if path.is_dir():
        yield Folder(path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except PermissionError:
        raise
    except Exception as error:  # BadZipFile, OSError (a seek before the start), NotImplementedError, struct.error...
        raise FormatError(f"{path}: not a ZIP file, or a damaged one ({error})") from error
    with archive:
        yield Archive(path, archive)


class Listing(NamedTuple):
    """The images of a collection by name, in order, and their labels; nothing is decoded yet."""

    names: list[str]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None


def listed(files: Files, others: bool = False) -> Listing:
    """All images in order of their names, with labels from dataset.json, labels.csv or the sub-folders.

    The first of these that is there counts: dataset.json in it, labels.csv in it, labels.csv beside it (see
    label_csv.py). A folder that holds everything is not counted. Without any the first-level sub-folders
    are the classes, if every image is in one and they are not numbered shards (00000, 00001, ...).
    With others, images of other formats are listed too instead of refused.
    """
    names = _image_names(files, others)
    root = _common_root(names)
    labels, classes = _labels(files, root, [name.removeprefix(root) for name in names])
    return Listing(names, labels, classes)


def one_by_one(files: Files, names: Sequence[str]) -> Iterator[np.ndarray | FormatError | OSError]:
    """The named images (C, H, W) one at a time; in place of one that cannot be read, the error that says why."""
    for name in names:
        try:
            with strict_pillow():  # not around the yield: who consumes keeps their own filters
                pixels = decode(files.read(name), f"{files.path}: {name}")
        except (FormatError, OSError) as error:
            yield error
        else:
            yield pixels


def _image_names(files: Files, others: bool = False) -> list[str]:
    for name in files.names:
        if name.lower().endswith(OTHER_IMAGES) and not others:
            raise FormatError(f"{files.path}: {name}: only PNG, JPEG and WebP are read; convert it or move it away")
    suffixes = SUFFIXES + OTHER_IMAGES if others else SUFFIXES
    names = [name for name in files.names if name.lower().endswith(suffixes)]
    if not names:
        raise FormatError(f"{files.path}: no PNG, JPEG or WebP images in it")
    return names


def _common_root(names: Sequence[str]) -> str:
    """The folders that all names begin with, e.g. "cats/" of cats/1.png and cats/2.png."""
    parents = [PurePosixPath(parent).parts for parent in {name.rpartition("/")[0] for name in names}]
    first, last = min(parents), max(parents)  # in sorted order, what these two share is shared by all
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return "".join(f"{part}/" for part in first[:shared])


def _labels(files: Files, root: str, inner: list[str]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    for folder in dict.fromkeys(("", *_ancestors(root))):
        if f"{folder}dataset.json" in files.names:
            return _labels_of_table(files, folder, [root.removeprefix(folder) + name for name in inner])
        if f"{folder}{LABELS_CSV}" in files.names:
            names = [root.removeprefix(folder) + name for name in inner]
            return labels_of_csv(files.read(f"{folder}{LABELS_CSV}"), names, f"{files.path}: {folder}{LABELS_CSV}")
    beside = files.path.absolute().parent / LABELS_CSV
    if beside.is_file():
        return labels_beside(beside, files.path.absolute(), root, inner)
    folders = [name.split("/")[0] for name in inner if "/" in name]
    if len(folders) < len(inner) or all(SHARD.fullmatch(folder) for folder in folders):
        return None, None
    classes = sorted(set(folders))
    index = {name: k for k, name in enumerate(classes)}
    return np.array([index[folder] for folder in folders], dtype=np.int64), tuple(classes)


def _ancestors(root: str) -> Iterator[str]:
    parts = root.split("/")[:-1]
    return ("".join(f"{part}/" for part in parts[: k + 1]) for k in range(len(parts)))


def _labels_of_table(files: Files, folder: str, names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    where = f"{files.path}: {folder}dataset.json"
    by_name, classes = parse_dataset_json(files.read(f"{folder}dataset.json"), where)
    labels = None if by_name is None else labels_in_order(by_name, names, where)
    check_class_names(labels, classes, where)
    return labels, classes


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Pillow's warning about too many pixels becomes an error, its remarks on odd metadata are silent."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
