"""Any data set that can be read as one file that trains: images cropped, resized and packed, one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..component import require
from ..errors import FormatError
from .archives import Progress
from .decoding import REPORT_EVERY
from .moments import Moments
from .resize import Resize
from .stores import Store, check_destination, new_store
from .streams import Source, opened_source

SHOWN = 100  # names of unreadable images that are kept


@dataclass(frozen=True)
class Prepared:
    """What was written.

    path, count, shape (C, H, W); label_dim as in Dataset, 0 without labels; classes: their names;
    per_class: samples of each class, where labels are classes; mean and sigma_data as Dataset has them;
    enlarged: images that had fewer pixels than the resolution along a side;
    skipped: images that could not be read, and of the first hundred of them why.
    """

    path: Path
    count: int
    shape: tuple[int, ...]
    label_dim: int
    classes: tuple[str, ...] | None
    per_class: list[int] | None
    mean: float
    sigma_data: float
    enlarged: int = 0
    skipped: int = 0
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON data."""
        sequences = {
            "shape": list(self.shape),
            "classes": None if self.classes is None else list(self.classes),
            "reasons": list(self.reasons),
        }
        return vars(self) | sequences | {"path": str(self.path)}


def prepare(
    source: str | Path,
    dest: str | Path,
    resize: Resize | None = None,
    *,
    max_images: int | None = None,
    skip_bad: bool = False,
    compress: int = 1,
    standardize: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Write the data set that `source` names (see `load`) to a new .zip, .npz or folder; what was written.

    Folders, ZIPs and shards of images are read little by little, in order of their names, so their number is not
    limited by memory; other sources are loaded first. Labels and names of classes are kept. Images become
    PNG files 00000/img00000000.png and a dataset.json, or, in an npz, images (N, H, W, C), labels and classes. Equal
    images give equal files. The destination appears when it is complete.

    resize: what becomes of each image; without it all must have one size already. Where grey
        and colour mix, grey becomes RGB.
    max_images: only the first so many, by name; of a folder a class these are the first classes.
    skip_bad: leave out images that cannot be read, instead of stopping at the first.
    compress: of the PNG files, from 0 (none, fast) to 9.
    standardize: for float arrays (latents, signals, points), into an npz: subtract the mean of each channel (first
        axis of a sample) and divide by its standard deviation; both are kept there as `mean` and `std`, float64 (C,).

    Raises FileExistsError, FileNotFoundError, FormatError naming the image that cannot be read or has another size,
    ValueError for options that do not fit the data.
    """
    dest, resize = Path(dest), resize or Resize()
    check_destination(dest, compress)
    require(max_images is None or max_images >= 1, f"max_images: got {max_images}; expected 1 or more")
    with opened_source(source, skip_bad, progress) as found:
        _check_options(found, dest, resize, standardize)
        total = min(len(found.names), max_images or len(found.names))
        work = _Work(found, resize, total, skip_bad, progress)
        if standardize:
            work.more = _channel_moments(found, total)
        try:
            return work.written(dest, compress)
        except _Colour:
            work.in_colour = True  # from the start again, now knowing that grey images become RGB
            return work.written(dest, compress)


def _check_options(found: Source, dest: Path, resize: Resize, standardize: bool) -> None:
    if found.is_image:
        require(not standardize, f"standardize: {found.where} holds images of 256 levels; only float arrays need it")
        return
    kind = f"{found.where} holds float arrays"
    require(dest.suffix.lower() == ".npz", f"{dest}: {kind}, which only an .npz can store")
    require(resize == Resize(), f"resize: {kind}; only images of 256 levels can be cropped or resized")


def _channel_moments(found: Source, total: int) -> dict[str, np.ndarray]:
    """Mean and standard deviation of each channel of the first `total` samples, float64 (C,)."""
    moments = Moments()
    readable = (sample for sample in found.samples() if isinstance(sample, np.ndarray))  # others: when writing
    for sample in islice(readable, total):
        moments.add(sample)
    constant = np.flatnonzero(moments.squares == 0)
    if len(constant):
        raise FormatError(f"{found.where}: standardize: channel {constant[0]} is constant; leave it out")
    return {"mean": moments.mean, "std": np.sqrt(moments.squares / moments.count)}


class _Colour(Exception):
    """A colour image came after grey ones were written."""


@dataclass
class _Work:
    found: Source
    resize: Resize
    total: int
    skip_bad: bool
    progress: Progress | None
    in_colour: bool = False
    more: dict[str, np.ndarray] = field(default_factory=dict)

    def written(self, dest: Path, compress: int) -> Prepared:
        """Write everything; raises _Colour when grey images turn out to be among colour ones."""
        tally = _Tally()
        with new_store(dest, compress) as store:
            self._add_all(store, tally)
            labels = None if self.found.labels is None else self.found.labels[tally.kept]
            store.finish(labels, self.found.classes, **self.more)
        return tally.result(dest, self.found, labels)

    def _add_all(self, store: Store, tally: _Tally) -> None:
        for i, sample in enumerate(self.found.samples()):
            if isinstance(sample, np.ndarray):
                made = self._made(sample, self.found.names[i], tally)
                store.add(made)
                tally.add(i, made)
            elif self.skip_bad:
                tally.skip(sample)
            else:
                raise sample
            done = len(tally.kept)
            if self.progress is not None and (done % REPORT_EVERY == 0 or done == self.total):
                self.progress(done, self.total)
            if done == self.total:
                return
        if not tally.kept:
            raise FormatError(f"{self.found.where}: none of {tally.skipped} images can be read; {tally.reasons[0]}")

    def _made(self, sample: np.ndarray, name: str, tally: _Tally) -> np.ndarray:
        """The sample as it is written: resized, with the channels of the others; float arrays standardised."""
        if not self.found.is_image:
            return self._standardized(sample)
        made = self.resize(sample)
        if len(made) == 1 and (self.in_colour or tally.shape[:1] == (3,)):
            made = made.repeat(3, axis=0)
        if len(made) == 3 and tally.shape[:1] == (1,):
            raise _Colour
        if tally.kept and made.shape != tally.shape:
            (_, h, w), (_, height, width) = made.shape, tally.shape
            first = self.found.names[tally.kept[0]]
            raise FormatError(
                f"{self.found.where}: mixed sizes: {first} is {width}x{height}, {name} is {w}x{h}; "
                "choose one for all: --resolution WIDTHxHEIGHT"
            )
        if self.resize.resolution is not None:
            width, height = self.resize.resolution
            tally.enlarged += sample.shape[2] < width or sample.shape[1] < height
        return made

    def _standardized(self, sample: np.ndarray) -> np.ndarray:
        if not self.more:
            return sample
        mean, std = (m.reshape(-1, *[1] * (sample.ndim - 1)) for m in (self.more["mean"], self.more["std"]))
        return ((sample - mean) / std).astype(np.float32)


@dataclass
class _Tally:
    """What has been written so far."""

    kept: list[int] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    moments: Moments = field(default_factory=Moments)
    enlarged: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, i: int, made: np.ndarray) -> None:
        """Count a sample as it was written."""
        self.kept.append(i)
        self.shape = made.shape
        self.moments.add(made)

    def skip(self, error: Exception) -> None:
        """Count an image that cannot be read."""
        self.skipped += 1
        if len(self.reasons) < SHOWN:
            self.reasons.append(str(error))

    def result(self, dest: Path, found: Source, labels: np.ndarray | None) -> Prepared:
        """The facts in the range the network sees."""
        mean, std = self.moments.of_all()
        if found.is_image:
            mean, std = mean / 127.5 - 1, std / 127.5
        per_class, dim = None, 0
        if labels is not None and labels.ndim == 1:
            per_class = np.bincount(labels, minlength=len(found.classes or ())).tolist()
            dim = len(per_class)
        elif labels is not None:
            dim = labels.shape[1]
        return Prepared(
            dest, len(self.kept), self.shape, dim, found.classes, per_class, mean, std,
            self.enlarged, self.skipped, tuple(self.reasons),
        )  # fmt: skip
