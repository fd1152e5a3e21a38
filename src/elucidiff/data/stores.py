"""New data sets, written sample by sample: a ZIP or folder of PNG images with dataset.json, or an npz."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ..component import require
from ..files import file_written_atomically, folder_written_atomically, refuse_existing
from .archives import MAX_MEMBER
from .arrays import CHANNELS
from .images import SUFFIXES

LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first moment a ZIP can name; the same input gives the same bytes
OTHER_FILES = (".npy", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".json", ".csv", ".h5", ".tfrecords")


class Store(ABC):
    """A data set in the making: samples are added one by one, labels come last."""

    @abstractmethod
    def add(self, sample: np.ndarray) -> None:
        """Write the next sample, of the same shape and type as those before."""

    @abstractmethod
    def finish(self, labels: np.ndarray | None, classes: tuple[str, ...] | None, **more: np.ndarray) -> None:
        """Write labels, one a sample, the names of the classes, and further arrays where the format holds any."""


class Pictures(Store):
    """PNG files 00000/img00000000.png, a thousand a folder, and dataset.json, as the published tools lay them out."""

    def __init__(self, compress: int) -> None:
        self._compress = compress
        self._names: list[str] = []

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file of the data set."""

    def add(self, sample: np.ndarray) -> None:
        """Write an image (C, H, W) uint8."""
        number = f"{len(self._names):08d}"
        self._names.append(f"{number[:5]}/img{number}.png")
        self.write(self._names[-1], _png(sample, self._compress))

    def finish(self, labels: np.ndarray | None, classes: tuple[str, ...] | None, **more: np.ndarray) -> None:
        """Write dataset.json: a label for each file, or null, and the names of the classes where there are any."""
        pairs = None if labels is None else list(zip(self._names, map(_plain, labels), strict=True))
        table = {"labels": pairs} | ({} if classes is None else {"classes": list(classes)})
        content = json.dumps(table).encode()
        require(len(content) <= MAX_MEMBER, f"labels: {len(content):,} bytes of dataset.json, too large; write an .npz")
        self.write("dataset.json", content)


class ZipOfPictures(Pictures):
    """Pictures in a ZIP, stored: PNG is compressed already."""

    def __init__(self, archive: zipfile.ZipFile, compress: int) -> None:
        super().__init__(compress)
        self._archive = archive

    def write(self, name: str, content: bytes) -> None:
        """Write a member."""
        self._archive.writestr(_member(name), content)


class FolderOfPictures(Pictures):
    """Pictures in a folder."""

    def __init__(self, folder: Path, compress: int) -> None:
        super().__init__(compress)
        self._folder = folder

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        (self._folder / name).parent.mkdir(exist_ok=True)
        (self._folder / name).write_bytes(content)


class Arrays(Store):
    """An npz with images (N, H, W, C) uint8, or data (N, *) float32, and labels and classes.

    How many samples come is known at the end only, and an npy begins with its shape: they wait in a file.
    """

    def __init__(self, archive: zipfile.ZipFile, waiting: IO[bytes]) -> None:
        self._archive, self._waiting = archive, waiting
        self._count = 0
        self._like = np.empty(0)

    def add(self, sample: np.ndarray) -> None:
        """Append a sample: an image (C, H, W) uint8, or any float32."""
        # With 1, 3 or 4 rows, (H, W, C) could be read as (C, H, W); such images stay the latter.
        image = sample.dtype == np.uint8
        self._like = sample.transpose(1, 2, 0) if image and sample.shape[1] not in CHANNELS else sample
        self._waiting.write(np.ascontiguousarray(self._like).data)
        self._count += 1

    def finish(self, labels: np.ndarray | None, classes: tuple[str, ...] | None, **more: np.ndarray) -> None:
        """Write samples, labels, classes and further arrays under their names."""
        self._waiting.seek(0)
        header: dict[str, Any] = {"descr": npy.dtype_to_descr(self._like.dtype), "fortran_order": False}
        with self._opened("images" if self._like.dtype == np.uint8 else "data") as file:
            npy.write_array_header_1_0(file, header | {"shape": (self._count, *self._like.shape)})
            shutil.copyfileobj(self._waiting, file, 1 << 22)
        named = {"labels": labels, "classes": None if classes is None else np.array(classes)} | more
        for name, array in named.items():
            if array is not None:
                with self._opened(name) as file:
                    npy.write_array(file, array, allow_pickle=False)

    def _opened(self, name: str) -> IO[bytes]:
        return self._archive.open(_member(f"{name}.npy"), "w", force_zip64=True)


def check_destination(dest: Path, compress: int) -> None:
    """Raise where nothing can be written: FileExistsError for a taken name, ValueError for an unknown kind."""
    require(0 <= compress <= 9, f"compress: got {compress}; allowed are 0 (none, fast) to 9 (small, slow)")
    suffix = dest.suffix.lower()
    require(suffix not in OTHER_FILES + SUFFIXES, f"{dest}: expected a .zip, a .npz or a new folder, not {suffix}")
    refuse_existing(dest)


@contextmanager
def new_store(dest: Path, compress: int) -> Iterator[Store]:
    """A data set at `dest` by its suffix: .zip, .npz, or a folder. It takes its name when the block ends well.

    compress: of PNG files, 0 (none) to 9; arrays are stored as they are.
    """
    kind = dest.suffix.lower()
    if kind not in (".zip", ".npz"):
        with folder_written_atomically(dest) as folder:
            yield FolderOfPictures(folder, compress)
        return
    with file_written_atomically(dest) as path, zipfile.ZipFile(path, "w") as archive:
        if kind == ".zip":
            yield ZipOfPictures(archive, compress)
            return
        with tempfile.TemporaryFile(dir=path.parent) as waiting:  # not in /tmp, which may be small
            yield Arrays(archive, waiting)


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, LONG_AGO)
    info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every system
    return info


def _png(pixels: np.ndarray, compress: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    plain = np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    Image.fromarray(plain).save(buffer, "PNG", compress_level=compress)
    return buffer.getvalue()


def _plain(label: Any) -> int | list[float]:
    """A label as JSON has it; of a float32 the shortest decimal that reads back as the same."""
    return int(label) if label.ndim == 0 else [float(str(value)) for value in label]
