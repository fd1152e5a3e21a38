"""Where the samples of WebDataset shards stand: one pass over each tar, and what was found is kept."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import FormatError
from ..files import write_atomically
from ..locks import only_one
from .archives import Progress, strict_pillow
from .arrays import sample_of_npy
from .images import OTHER_IMAGES, SUFFIXES, decode, header
from .tars import Member, members

FORMAT = 1  # of the cached index
WORTH_KEEPING = 64 * 2**20  # bytes of a tar; smaller ones are read again in a fraction of a second
ARRAY = ".npy"
VALUES = (*SUFFIXES, ARRAY)
LABELS = (".cls", ".json")


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample in a tar: its file, that file's place, length and CRC-32, what decoding gives, its label as it is."""

    name: str
    offset: int
    size: int
    crc: int
    shape: tuple[int, ...]
    image: bool
    label: Any = None


def index_of(path: Path, cache: Path | None = None, progress: Progress | None = None) -> list[Entry]:
    """The samples of a tar in its order, from the index kept in the folder `cache` if the tar is as it was then.

    progress(bytes, bytes in all) is called as the tar is read. Raises FormatError naming tar and member.
    """
    kept = None if cache is None or path.stat().st_size < WORTH_KEEPING else cache / _name_of_index(path)
    found = _read_index(kept) if kept is not None else None
    with ExitStack() as stack:
        if found is None and kept is not None:  # of processes that ask at once one reads the tar
            with suppress(OSError):
                stack.enter_context(only_one(kept))
            found = _read_index(kept)
        return _indexed(path, kept, found, progress)


def _indexed(path: Path, kept: Path | None, found: list[Entry] | None, progress: Progress | None) -> list[Entry]:
    if found is None:
        with strict_pillow():
            found = list(_entries(path, progress))
        if not found:
            raise FormatError(f"{path}: no samples in it, files such as 000000.png with 000000.cls")
        if kept is not None:
            _write_index(kept, found)
    elif progress is not None:
        progress(path.stat().st_size, path.stat().st_size)
    return found


def _entries(path: Path, progress: Progress | None) -> Iterator[Entry]:
    seen: set[str] = set()
    for key, group in groupby(members(path), key=lambda member: split_name(member.name)[0]):
        files: dict[str, Member] = {}
        for member in group:
            suffix = split_name(member.name)[1]
            if suffix.endswith(OTHER_IMAGES):
                raise FormatError(f"{path}: {member.name}: only PNG, JPEG, WebP and npy are read")
            if suffix in VALUES or suffix in LABELS:
                kind = "value" if suffix in VALUES else suffix
                if kind in files:
                    raise FormatError(f"{path}: {key!r} has two samples: {files[kind].name} and {member.name}")
                files[kind] = member
            if progress is not None:
                progress(member.offset + member.size, path.stat().st_size)
        if not files:
            continue
        if "value" not in files:
            raise FormatError(f"{path}: {key!r} has a label, but no image (PNG, JPEG, WebP) or array (npy)")
        if key in seen:
            raise FormatError(f"{path}: {key!r} occurs twice")
        seen.add(key)
        yield _entry(path, files)


def _entry(path: Path, files: dict[str, Member]) -> Entry:
    value, where = files["value"], f"{path}: {files['value'].name}"
    image = not value.name.lower().endswith(ARRAY)
    if image:
        shape: tuple[int, ...] = header(value.content, where)
    else:
        sample = sample_of_npy(value.content, where)
        shape, image = sample.shape, sample.dtype.name == "uint8"
    label = None
    if ".cls" in files:
        label = _class(files[".cls"].content, f"{path}: {files['.cls'].name}")
    elif ".json" in files:
        label = _label_of_json(files[".json"].content, f"{path}: {files['.json'].name}")
    return Entry(value.name, value.offset, value.size, zlib.crc32(value.content), shape, image, label)


def split_name(name: str) -> tuple[str, str]:
    """The key of a sample and what kind of file it is: ("a/001", ".png") of a/001.png and of a/001.photo.png."""
    folder, slash, file = name.rpartition("/")
    key, _, rest = file.partition(".")
    return f"{folder}{slash}{key}", f".{rest.rpartition('.')[2].lower()}" if rest else ""


def _class(content: bytes, where: str) -> int:
    text = content.strip()
    if not text.isdigit() or len(text) > 7:
        raise FormatError(f"{where}: holds {content[:20]!r}; expected a class, a whole number from 0")
    return int(text)


def _label_of_json(content: bytes, where: str) -> Any:
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON ({error})") from error
    return table.get("label") if isinstance(table, dict) else None


def content_at(file: IO[bytes], offset: int, size: int, crc: int, where: str) -> bytes:
    """The bytes of a member. Raises FormatError when they are not those that were indexed."""
    file.seek(offset)
    content = file.read(size)
    if len(content) != size or zlib.crc32(content) != crc:
        raise FormatError(f"{where}: the tar has changed since it was indexed; load it again")
    return content


def decode_member(content: bytes, where: str) -> np.ndarray:
    """A sample from the bytes of its member: uint8 (C, H, W) for an image, else float32; `where` ends in its name."""
    return sample_of_npy(content, where) if where.lower().endswith(ARRAY) else decode(content, where)


# ---- the index that is kept


def _name_of_index(path: Path) -> str:
    state = path.stat()
    identity = json.dumps([FORMAT, str(path.resolve()), state.st_size, state.st_mtime_ns])
    return f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"


def _read_index(file: Path) -> list[Entry] | None:
    """None for anything that is not a whole index: it is then made again."""
    try:
        rows = json.loads(file.read_bytes())
        return [
            Entry(str(name), int(offset), int(size), int(crc), tuple(int(n) for n in shape), bool(image), label)
            for name, offset, size, crc, shape, image, label in rows
        ] or None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _write_index(file: Path, entries: list[Entry]) -> None:
    rows = [[e.name, e.offset, e.size, e.crc, list(e.shape), e.image, e.label] for e in entries]
    with suppress(OSError):  # a home that cannot be written to costs the next reader a pass, and nothing else
        write_atomically(file, json.dumps(rows).encode())
