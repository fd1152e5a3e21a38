"""From what the user names to a data set: the built-in digits, files, folders, archives, shards, the hub."""

from __future__ import annotations

import glob
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..download import fetched, home, is_url
from ..errors import FormatError
from .archives import Files, Progress, listed, opened
from .arrays import from_arrays, read_npy, read_npz
from .cache import Mapped, stored
from .cifar import is_cifar, read_cifar
from .dataset import Dataset
from .decoding import Images, decoded, threads_here
from .huggingface import PREFIX, read_huggingface
from .idx import IMAGES, images_in, read_idx
from .images import header
from .shards import read_shards
from .skipping import RAISE, SKIP, check_on_bad_data, left_out
from .tables import SEPARATORS, read_table

DIGITS = Path(__file__).with_name("digits.npz")
INDEX, FETCHED = "index", "fetched"  # folders of the cache: indices of large shards, and those of the web
LARGE = 256 * 2**20  # bytes of decoded images that are kept unasked; fewer are read again within seconds
OFF = "off"
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_SHARDS = 100_000
ARRAYS = {".npz": read_npz, ".npy": read_npy} | dict.fromkeys(SEPARATORS, read_table)


class CacheWarning(UserWarning):
    """Decoded images could not be kept; each process has its own in memory."""


def load(
    source: str | Path,
    progress: Progress | None = None,
    *,
    cache: str | Path | None = None,
    on_bad_data: str = RAISE,
) -> Dataset:
    """The data set that `source` names, read into memory unless it is shards, or many images.

    - "digits": 1,797 handwritten 8x8 digits, embedded (a folder of that name is "./digits");
    - a folder of PNG, JPEG or WebP images; dataset.json or labels.csv gives labels, or sub-folders are classes;
    - a .zip of the same, as the published data-set tools write it;
    - .npz (images, data, x, latents or arr_0; labels or y; classes) or .npy: see `from_arrays`;
    - points in a .csv or .tsv file, a row each; a column named label or class has their labels;
    - CIFAR-10 and CIFAR-100 in their own files, python or binary: the folder, the .tar.gz, or one batch;
    - MNIST in its own files: ...images-idx3-ubyte[.gz], or the folder of them. Of both the training set is read;
      SOURCE:test is the test set;
    - WebDataset shards, which stay on the disk (`Shards`): x.tar, x-{000000..000009}.tar, x-*.tar, a folder of .tar, or
      http(s) addresses of tars, which are fetched once into `cache`;
    - "hf:owner/name[:split[:image_column[:label_column]]]": a data set of the hub, through the package `datasets`.

    cache: the folder of what is fetched, indexed and decoded; it may be removed at any time. None: `home()`. Images of
    a folder or ZIP are decoded into it once (`Mapped`) if it is named here, or if they have more than 256 MiB, or if
    several processes of this machine read them; "off": never. A changed source is decoded anew.
    on_bad_data: "skip" leaves images of a folder or ZIP that cannot be read out, with a BadDataWarning; in the place of
    one in shards comes the next. The default "raise" raises FormatError.
    progress(done, total) is called now and then. Raises FileNotFoundError, MissingExtraError, or FormatError naming
    the file and the field that is wrong.
    """
    check_on_bad_data(on_bad_data)
    found = _load(source, progress, cache, on_bad_data == SKIP)
    return found.skipping() if on_bad_data == SKIP else found


def _load(source: str | Path, progress: Progress | None, asked: str | Path | None, skip: bool) -> Dataset:
    text, cache = str(source), home() if asked in (None, OFF) else Path(str(asked)).expanduser()
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
        return read_shards(tars, text, cache / INDEX, progress) if tars else _images(path, progress, asked, skip)
    if path.suffix.lower() == ".zip":
        return _images(path, progress, asked, skip)
    return _file(path, cache, progress)


def _images(path: Path, progress: Progress | None, asked: str | Path | None, skip: bool) -> Dataset:
    """The images of a folder or ZIP, in memory or mapped. All have one size; grey among colour becomes RGB."""
    with opened(path) as files:
        names, labels, classes = listed(files)
        fields = {"labels": labels, "classes": classes, "name": path.stem, "source": str(path), "names": tuple(names)}
        folder = Path(str(asked)).expanduser() if asked not in (None, OFF) else home()
        if asked == OFF or (asked is None and not _worth_keeping(files, names)):
            return _in_memory(files, names, progress, skip, fields)
        try:
            kept = stored(files, names, folder, progress, skip)
        except OSError as error:
            if asked is not None:
                raise
            warnings.warn(f"{folder}: decoded images are not kept there ({error})", CacheWarning, stacklevel=4)
            return _in_memory(files, names, progress, skip, fields)
    rows = np.flatnonzero(left_out(names, kept.bad, str(path)))
    whole = Mapped(kept, np.arange(len(names)), **fields | {"left_out": len(kept.bad)})
    return whole.subset(rows) if kept.bad else whole


def _in_memory(
    files: Files, names: list[str], progress: Progress | None, skip: bool, fields: dict[str, Any]
) -> Dataset:
    images, bad = Images(names, lambda i: files.read(names[i]), str(files.path)), dict[int, str]()
    values = decoded(images, progress, bad if skip else None, threads=threads_here())
    rows = left_out(names, bad, images.where)
    whole = Dataset(values, **fields, left_out=len(bad))
    return whole.subset(rows) if bad else whole


def _worth_keeping(files: Files, names: list[str]) -> bool:
    """Whether images are decoded into the cache unasked: many of them, by the first, or for several processes here."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        return True
    with suppress(FormatError, OSError):
        return len(names) * math.prod(header(files.read(names[0]), names[0])) > LARGE
    return False


def _file(path: Path, cache: Path, progress: Progress | None) -> Dataset:
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return read_shards([path], str(path), cache / INDEX, progress)
    if suffix in ARRAYS:
        return ARRAYS[suffix](path)
    raise FormatError(
        f"{path}: expected a folder of images, a .zip, .npz, .npy, .csv, .tsv or .tar file, CIFAR's or MNIST's files, "
        "hf:owner/name, or 'digits'"
    )


def is_named_data(text: str) -> bool:
    """Whether a name says that it is data and no model: digits, .zip, .tar, .npz, hf:, an address, CIFAR, MNIST."""
    path, _ = _part(text)
    known = (".zip", ".tar", *ARRAYS)
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
