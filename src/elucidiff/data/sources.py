"""From what the user names to a data set: the embedded digits, a folder, a ZIP, an array file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import FormatError
from .archives import Progress, read_folder, read_zip
from .arrays import from_arrays, read_npy, read_npz
from .dataset import Dataset

DIGITS = Path(__file__).with_name("digits.npz")


def load(source: str | Path, progress: Progress | None = None) -> Dataset:
    """The data set that `source` names, read into memory.

    - "digits": 1,797 handwritten 8x8 digits, embedded (a folder of that name is "./digits");
    - a folder of PNG, JPEG or WebP images; sub-folders are classes, or dataset.json gives labels;
    - a .zip of the same, as the published data-set tools write it;
    - .npz (images, data, x or arr_0; labels or y; classes) or .npy: see `from_arrays`.

    progress(done, total) is called now and then while images are decoded. Raises
    FileNotFoundError, or FormatError naming the file and the field that is wrong.
    """
    if source == "digits":
        return _digits()
    path = Path(source)
    if path.is_dir():
        return read_folder(path, progress)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder (or 'digits', the embedded data)")
    if path.suffix.lower() == ".zip":
        return read_zip(path, progress)
    readers = {".npz": read_npz, ".npy": read_npy}
    if path.suffix.lower() not in readers:
        raise FormatError(f"{source}: expected a folder of images, a .zip, .npz or .npy file, or 'digits'")
    return readers[path.suffix.lower()](path)


def _digits() -> Dataset:
    """The embedded digits: levels 0 .. 16 of digits.npz become 0 .. 255."""
    stored = read_npz(DIGITS)
    levels = np.rint(stored.values * (255 / 16)).astype(np.uint8)
    names = tuple(str(digit) for digit in range(10))
    return from_arrays(levels, stored.labels, names, name="digits", source="digits")
