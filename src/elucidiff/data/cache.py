"""Decoded images kept in files: decoded once, mapped into memory, shared by all processes of a machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from torch import Tensor

from ..errors import FormatError
from ..files import MANIFEST, folder_written_atomically, sha256
from ..locks import only_one
from .archives import Files, Progress, strict_pillow
from .dataset import CHUNK, rows_of
from .decoding import Images, check_size, good, in_order, threads_here
from .lazy import Lazy

FORMAT = 1
FOLDER, PIXELS, CHECKS, FACTS = "decoded", "images.npy", "crc32.npy", "facts.json"


class Stored(NamedTuple):
    """Decoded images in a folder: all, mapped (N, C, H, W); the CRC-32 of each (N,); messages of unreadable ones."""

    place: Path
    pixels: np.ndarray
    checks: np.ndarray
    bad: dict[int, str]


class Mapped(Lazy):
    """Images that were decoded once into a file, which is mapped; processes of a machine share its memory.

    A batch compares the CRC-32 of each sample with that of what was decoded, and raises OSError naming the file where
    they differ. All numbers are those of the same data in memory. A subset reads the same file; `values` is a copy.
    """

    def __init__(self, stored: Stored, rows: np.ndarray, **fields: Any) -> None:
        self._stored, self._rows = stored, rows
        super().__init__(**fields)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_image(self) -> bool:
        """True."""
        return True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (C, H, W)."""
        return tuple(self._stored.pixels.shape[1:])

    @property
    def place(self) -> Path:
        """The folder that holds the decoded images; it may be removed at any time, and is then made again."""
        return self._stored.place

    def told(self) -> str:
        """Where the decoded images are, and how much there is of all data sets, as a line for people."""
        home = self.place.parent
        return f"decoded images are kept in {self.place}; {home} has {size_of(home) >> 20:,} MiB, and may be removed"

    def read(self, chosen: np.ndarray) -> np.ndarray:
        """The samples of these rows (B, C, H, W)."""
        rows = self._rows[chosen]
        found = np.asarray(self._stored.pixels[rows])
        for row, sample in zip(rows, found, strict=True):
            if zlib.crc32(sample.data) != self._stored.checks[row]:
                raise OSError(
                    f"{self.place / PIXELS}: image {row} is not what was written (CRC-32 differs); remove "
                    f"{self.place}, and the images are decoded again"
                )
        return found

    def pieces(self) -> Iterator[np.ndarray]:
        """All values in order, some samples at a time."""
        at_once = max(1, CHUNK // int(np.prod(self.shape)))
        return (self.read(rows) for rows in np.split(np.arange(len(self)), range(at_once, len(self), at_once)))

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Mapped:
        """The samples at these indices, in this order; nothing is read."""
        chosen = rows_of(indices, len(self))
        return Mapped(self._stored, self._rows[chosen], **self.fields_at(chosen))


def stored(files: Files, names: list[str], home: Path, progress: Progress | None, skip: bool) -> Stored:
    """The named images decoded in the folder `home`: found there, or put there now.

    The folder's name is the SHA-256 of the source: its path, and name, size and date or CRC-32 of every file, for an
    archive its own too; a changed source is another one. Where several processes ask at once, one decodes and the
    others wait. What another state of the same source left is removed. Raises FormatError for an unreadable image,
    unless they are to be skipped, and OSError where the folder cannot be written, or has no room.
    """
    place = home / FOLDER / _key(files, names)
    found = _opened(place, len(names))
    if found is None:
        with only_one(place):
            found = _opened(place, len(names))
            if found is None:
                shutil.rmtree(place, ignore_errors=True)  # damaged
                _write(place, files, names, progress, skip)
                found = _opened(place, len(names))
    if found is None:
        raise OSError(f"{place}: cannot be read back")
    if found.bad and not skip:
        raise FormatError(next(iter(found.bad.values())))
    return found


def size_of(place: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if place.is_dir() else 0


def _key(files: Files, names: list[str]) -> str:
    state = files.path.stat()
    own = [state.st_size, state.st_mtime_ns] if files.path.is_file() else []
    digest = hashlib.sha256(json.dumps([FORMAT, str(files.path.resolve()), own]).encode())
    for name in names:
        digest.update(json.dumps([name, *files.state(name)]).encode())
    return digest.hexdigest()[:32]


def _write(place: Path, files: Files, names: list[str], progress: Progress | None, skip: bool) -> None:
    images = Images(names, lambda i: files.read(names[i]), str(files.path))
    bad: dict[int, str] | None = {} if skip else None
    with suppress(FileExistsError), folder_written_atomically(place) as folder:  # on Windows another may be first
        shape = _write_pixels(folder, images, progress, bad, None)
        if shape is not None:  # grey came first, and colour later
            if bad is not None:
                bad.clear()
            _write_pixels(folder, images, progress, bad, shape)
        if place.name != _key(files, names):
            raise FormatError(f"{files.path}: was changed while it was read; load it again")
        facts = {"format": FORMAT, "source": str(files.path.resolve()), "bad": bad or {}}
        (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    _remove_older(place)


def _write_pixels(
    folder: Path, images: Images, progress: Progress | None, bad: dict[int, str] | None, shape: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """Write all images in the shape of the first, or the one that is given; the shape in colour where that is needed.

    Written and not mapped: on a full disk that is an error, where a mapped file ends the process.
    """
    count, checks, first = len(images.names), np.zeros(len(images.names), np.uint32), 0
    with strict_pillow(), (folder / PIXELS).open("wb") as file:
        done = 0
        for i, pixels in good(in_order(images, progress, threads_here()), bad):
            if done == 0:
                shape, first = shape or pixels.shape, i
                _check_room(folder, count * int(np.prod(shape)))
                npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
            check_size(images, (first, shape[1:]), (i, pixels.shape[1:]))  # type: ignore[index]
            if len(pixels) > shape[0]:  # type: ignore[index]
                return pixels.shape
            file.write(bytes((i - done) * int(np.prod(shape))))  # type: ignore[arg-type]  # of unreadable ones
            content = np.ascontiguousarray(np.broadcast_to(pixels, shape)).data  # type: ignore[arg-type]
            file.write(content)
            checks[i], done = zlib.crc32(content), i + 1
        if done == 0:
            raise FormatError(f"{images.where}: none of {count:,} images can be read ({(bad or {}).get(0)})")
        file.write(bytes((count - done) * int(np.prod(shape))))  # type: ignore[arg-type]
    with (folder / CHECKS).open("wb") as file:
        npy.write_array(file, checks, allow_pickle=False)
    return None


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{folder.parent}: {needed:,} bytes of decoded images; there is room for {free:,}")


def _opened(place: Path, count: int) -> Stored | None:
    """None where it is not there, or not whole: files of another size, or checks that are not those written."""
    try:
        written = json.loads((place / MANIFEST).read_bytes())["sha256"]
        facts = json.loads((place / FACTS).read_bytes())
        pixels = npy.open_memmap(place / PIXELS, mode="r")  # raises for a file that is too short
        if written[CHECKS] != sha256(place / CHECKS) or written[FACTS] != sha256(place / FACTS):
            return None
        checks = np.load(place / CHECKS, allow_pickle=False)
        right = pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == len(checks) == count
        return Stored(place, pixels, checks, {int(i): str(m) for i, m in facts["bad"].items()}) if right else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remove_older(place: Path) -> None:
    """Remove what other states of the same source left."""
    own = json.loads((place / FACTS).read_bytes())["source"]
    for folder in place.parent.iterdir():
        with suppress(OSError, ValueError, KeyError, TypeError):
            if folder != place and json.loads((folder / FACTS).read_bytes())["source"] == own:
                shutil.rmtree(folder)
