"""From what the user names to a data set: the built-in digits, files, folders, archives, shards, the hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import FormatError
from .archives import Progress, read_folder, read_zip
from .arrays import from_arrays, read_npy, read_npz
from .cifar import is_cifar, read_cifar
from .dataset import Dataset
from .download import fetched, is_url
from .huggingface import PREFIX, read_huggingface
from .idx import IMAGES, images_in, read_idx
from .shards import read_shards

DIGITS = Path(__file__).with_name("digits.npz")
CACHE = Path("~/.cache/elucidiff")  # fetched shards and the indices of large ones
INDEX, FETCHED = "index", "fetched"  # its folders
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_SHARDS = 100_000
ARRAYS = {".npz": read_npz, ".npy": read_npy}


def load(source: str | Path, progress: Progress | None = None, *, cache: str | Path = CACHE) -> Dataset:
    """The data set that `source` names, read into memory unless it is shards.

    - "digits": 1,797 handwritten 8x8 digits, embedded (a folder of that name is "./digits");
    - a folder of PNG, JPEG or WebP images; dataset.json or labels.csv gives labels, or sub-folders are classes;
    - a .zip of the same, as the published data-set tools write it;
    - .npz (images, data, x, latents or arr_0; labels or y; classes) or .npy: see `from_arrays`;
    - CIFAR-10 and CIFAR-100 in their own files, python or binary: the folder, the .tar.gz, or one batch;
    - MNIST in its own files: ...images-idx3-ubyte[.gz], or the folder of them. Of both the training set is read;
      SOURCE:test is the test set;
    - WebDataset shards, which stay on the disk (`Shards`): x.tar, x-{000000..000009}.tar, x-*.tar, a folder of .tar, or
      http(s) addresses of tars, which are fetched once into `cache`;
    - "hf:owner/name[:split[:image_column[:label_column]]]": a data set of the hub, through the package `datasets`.

    progress(done, total) is called now and then. Raises FileNotFoundError, MissingExtraError, or FormatError naming
    the file and the field that is wrong.
    """
    text, cache = str(source), Path(cache).expanduser()
    if source == "digits":
        return _digits()
    if text.startswith(PREFIX):
        return read_huggingface(text, progress)
    if is_url(text) or BRACES.search(text) or (_has_wildcard(text) and not Path(text).exists()):
        return _shards(text, cache, progress)
    path, part = _part(text)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder (or 'digits', the embedded data)")
    if is_cifar(path):
        return read_cifar(path, part)
    images = _idx_images(path, part)
    if images is not None:
        return read_idx(images)
    if part is not None:
        raise FormatError(f"{source}: only CIFAR and MNIST in their own files have a part {part!r}")
    if path.is_dir():
        tars = sorted(p for p in path.iterdir() if p.suffix.lower() == ".tar" and p.is_file())
        return read_shards(tars, text, cache / INDEX, progress) if tars else read_folder(path, progress)
    return _file(path, cache, progress)


def _file(path: Path, cache: Path, progress: Progress | None) -> Dataset:
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return read_zip(path, progress)
    if suffix == ".tar":
        return read_shards([path], str(path), cache / INDEX, progress)
    if suffix in ARRAYS:
        return ARRAYS[suffix](path)
    raise FormatError(
        f"{path}: expected a folder of images, a .zip, .npz, .npy or .tar file, CIFAR's or MNIST's files, or 'digits'"
    )


def is_named_data(text: str) -> bool:
    """Whether a name says that it is data and no model: digits, .zip, .tar, .npz, hf:, an address, CIFAR, MNIST."""
    path, _ = _part(text)
    known = (".zip", ".npz", ".npy", ".tar")
    return (
        text == "digits"
        or text.startswith(PREFIX)
        or is_url(text)
        or bool(BRACES.search(text))
        or path.suffix.lower() in known
        or bool(IMAGES.fullmatch(path.name))
        or is_cifar(path)
    )


def is_images(path: Path) -> bool:
    """Whether `load` would read a path as a folder or ZIP of image files, and not as CIFAR, MNIST or shards."""
    if path.is_dir():
        special = is_cifar(path) or _idx_images(path, None) is not None
        return not special and not any(p.suffix.lower() == ".tar" for p in path.iterdir())
    return path.is_file() and path.suffix.lower() == ".zip"


def _part(text: str) -> tuple[Path, str | None]:
    """A path and the part of it that is asked for: (x, "test") of x:test, unless a file is called so."""
    before, _, last = text.rpartition(":")
    if before and last in ("train", "test") and not Path(text).exists():
        return Path(before), last
    return Path(text), None


def _idx_images(path: Path, part: str | None) -> Path | None:
    if path.is_file():
        return path if IMAGES.fullmatch(path.name) else None
    inner = path / "MNIST" / "raw"  # as torchvision leaves them
    return images_in(path, part) or (images_in(inner, part) if inner.is_dir() else None)


def _has_wildcard(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _shards(text: str, cache: Path, progress: Progress | None) -> Dataset:
    names = list(_expanded(text))
    if is_url(text):
        paths = [fetched(name, cache / FETCHED, progress) for name in names]
    else:
        paths = [Path(p) for name in names for p in (sorted(glob.glob(name)) if _has_wildcard(name) else [name])]
    if not paths:
        raise FileNotFoundError(f"{text}: no file matches")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file ({text})")
        if path.suffix.lower() != ".tar":
            raise FormatError(f"{path}: expected a .tar, as WebDataset's shards are, not compressed")
    return read_shards(paths, text, cache / INDEX, progress)


def _expanded(text: str) -> Iterator[str]:
    """The names that {000..009} stands for, digits as many as on the left; several braces give all combinations."""
    found = BRACES.search(text)
    if found is None:
        yield text
        return
    first, last = int(found[1]), int(found[2])
    if last < first or last - first >= MAX_SHARDS:
        raise ValueError(f"{found[0]}: expected a range upwards of at most {MAX_SHARDS:,}, such as {{000000..000009}}")
    for number in range(first, last + 1):
        yield from _expanded(f"{text[: found.start()]}{number:0{len(found[1])}}{text[found.end() :]}")


def _digits() -> Dataset:
    """The embedded digits: levels 0 .. 16 of digits.npz become 0 .. 255."""
    stored = read_npz(DIGITS)
    levels = np.rint(stored.values * (255 / 16)).astype(np.uint8)
    names = tuple(str(digit) for digit in range(10))
    return from_arrays(levels, stored.labels, names, name="digits", source="digits")
