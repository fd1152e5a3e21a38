"""A data set in memory: samples as arrays, labels, and the numbers a training design follows from."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..component import require
from ..seeds import Stream, keyed
from .images import from_uint8

CHUNK = 1 << 20  # elements converted to float64 at a time when measuring


class SigmaDataWarning(UserWarning):
    """The configured sigma_data is far from the standard deviation of the data."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """N samples and perhaps their labels.

    values: uint8 (N, C, H, W) for images (pixel levels), float32 (N, *) for anything else.
    labels: None, class indices int64 (N,), or vectors float32 (N, K).
    label_dim: number of classes, or K; 0 without labels. Left out, it follows from the class names
    or from the largest label; a subset keeps that of the whole.
    names: of the files that the samples came from, for messages; None where there are none.
    condition: what each sample is paired with, of its size: uint8 (N, K, H, W) or float32 (N, K, *); None without.
    left_out: how many more samples there were, which could not be read.

    Raises ValueError when the arrays do not fit together.
    """

    values: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    name: str = "data"
    source: str = ""
    label_dim: int = 0
    names: tuple[str, ...] | None = None
    condition: np.ndarray | None = None
    left_out: int = 0

    def __post_init__(self) -> None:
        v = self.values
        image = v.dtype == np.uint8 and v.ndim == 4
        require(
            image or (v.dtype == np.float32 and v.ndim >= 2),
            f"values: got {v.dtype} {v.shape}; expected uint8 (N, C, H, W) or float32 (N, *)",
        )
        require(v.size > 0, f"values: got shape {v.shape}, which holds nothing")
        require(self.names is None or len(self.names) == len(v), f"names: got {len(self.names or ())} for {len(v)}")
        if self.condition is not None:
            c = self.condition
            known = c.dtype == np.float32 or (c.dtype == np.uint8 and c.ndim == 4)
            fits = c.ndim == v.ndim and c.shape[:1] + c.shape[2:] == v.shape[:1] + v.shape[2:]
            require(
                known and fits,
                f"condition: got {c.dtype} {c.shape} for values {v.shape}; expected (N, K, *) of the same size, "
                "uint8 images or float32",
            )
        if self.labels is not None:
            self._check_labels(self.labels)
            object.__setattr__(self, "label_dim", self.label_dim or label_dim_of(self.labels, self.classes))

    def _check_labels(self, labels: np.ndarray) -> None:
        indices = labels.dtype == np.int64 and labels.ndim == 1
        require(
            indices or (labels.dtype == np.float32 and labels.ndim == 2),
            f"labels: got {labels.dtype} {labels.shape}; expected int64 (N,) or float32 (N, K)",
        )
        require(len(labels) == len(self), f"labels: got {len(labels)} for {len(self)} samples")
        if indices:
            limit = self.label_dim or label_dim_of(labels, self.classes)
            require(
                labels.min() >= 0 and labels.max() < limit,
                f"labels: got {labels.min()} to {labels.max()}; expected 0 to {limit - 1}",
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_image(self) -> bool:
        """Whether the samples are images of 256 levels (uint8)."""
        return self.values.dtype == np.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample as a tensor: (C, H, W) for images."""
        return tuple(self.values.shape[1:])

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> tuple[Tensor, Tensor | None]:
        """Samples (B, *) float32, images as x / 127.5 - 1, and their labels (B, label_dim), one-hot or soft."""
        chosen = np.asarray(indices)
        y = torch.from_numpy(self.values[chosen])
        return from_uint8(y) if self.is_image else y, self._label_rows(chosen)

    def batch_read(self, indices: Sequence[int] | np.ndarray | Tensor) -> tuple[np.ndarray, Tensor, Tensor | None]:
        """The rows that were read, and `batch`: in memory those that were asked for."""
        return np.asarray(indices), *self.batch(indices)

    def skipping(self) -> Dataset:
        """The same samples, without an error where one of them cannot be read later: in memory there is none."""
        return self

    def conditions(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor | None:
        """What samples are paired with, (B, K, *) float32, images as x / 127.5 - 1; None without."""
        if self.condition is None:
            return None
        c = torch.from_numpy(self.condition[np.asarray(indices)])
        return from_uint8(c) if c.dtype == torch.uint8 else c

    def _label_rows(self, chosen: np.ndarray) -> Tensor | None:
        if self.labels is None:
            return None
        rows = torch.from_numpy(self.labels[chosen])
        if rows.ndim == 2:
            return rows
        return torch.nn.functional.one_hot(rows, self.label_dim).to(torch.float32)

    def tensor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All samples (N, *) in the range the network sees (images in [-1, 1])."""
        y = torch.from_numpy(self.values.copy())  # a tensor must not share memory with a frozen value
        return from_uint8(y, dtype) if self.is_image else y.to(dtype)

    def mean(self) -> float:
        """The mean over all elements, in the range the network sees."""
        return self.moments()[0]

    def sigma_data(self) -> float:
        """The standard deviation over all elements, in the range the network sees: EDM's sigma_data."""
        return self.moments()[1]

    def moments(self) -> tuple[float, float]:
        """(mean, sigma_data), in one pass."""
        mean, std = _mean_and_std(self.pieces())
        return (mean / 127.5 - 1, std / 127.5) if self.is_image else (mean, std)

    def pieces(self) -> Iterator[np.ndarray]:
        """All values in order, some samples at a time, of at most a million numbers (or one sample)."""
        rows = max(1, CHUNK // max(1, math.prod(self.shape)))
        return (self.values[start : start + rows] for start in range(0, len(self), rows))

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of shapes, dtypes, values, labels and any conditions; names do not enter."""
        digest = hashlib.sha256()
        dtype = "uint8" if self.is_image else "float32"
        digest.update(json.dumps([dtype, [len(self), *self.shape]]).encode())
        for piece in self.pieces():
            digest.update(_bytes(piece))
        for array in (self.labels, *([] if self.condition is None else [self.condition])):
            header = None if array is None else [array.dtype.name, list(array.shape)]
            digest.update(json.dumps(header).encode())
            if array is not None:
                digest.update(_bytes(array))
        return digest.hexdigest()

    def measured(self) -> Dataset:
        """The samples that mean, sigma_data and their like are measured on: here all of them."""
        return self

    def duplicates(self) -> list[list[int]]:
        """Groups of two or more indices whose samples are the same, by SHA-256 of their values; labels do not enter."""
        groups: dict[bytes, list[int]] = {}
        for i, sample in enumerate(sample for piece in self.pieces() for sample in piece):
            groups.setdefault(hashlib.sha256(sample.tobytes()).digest(), []).append(i)
        return [group for group in groups.values() if len(group) > 1]

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Dataset:
        """The samples at these indices, in this order; classes and label_dim stay those of the whole."""
        chosen = np.asarray(indices)
        labels = None if self.labels is None else self.labels[chosen]
        condition = None if self.condition is None else self.condition[chosen]
        names = names_at(self.names, chosen)
        return replace(self, values=self.values[chosen], labels=labels, names=names, condition=condition)

    def split(self, heldout: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(train, held out): a pure function of (N, heldout, seed); both keep the order of the whole.

        heldout is the fraction that is held out, between 0 and 1; N heldout is rounded (half to even).
        """
        require(0 < heldout < 1, f"heldout: got {heldout!r}; expected a fraction between 0 and 1, such as 0.1")
        count = round(len(self) * heldout)
        require(
            0 < count < len(self),
            f"heldout: {heldout!r} of {len(self)} samples leaves {count} held out and {len(self) - count} to train on",
        )
        order = keyed(seed, Stream.SPLIT).permutation(len(self))
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))


def names_at(names: tuple[str, ...] | None, chosen: np.ndarray) -> tuple[str, ...] | None:
    """The names at these indices (or where a mask is true); None where there are none."""
    if names is None:
        return None
    return tuple(names[i] for i in rows_of(chosen, len(names)))


def rows_of(indices: Sequence[int] | np.ndarray | Tensor, n: int) -> np.ndarray:
    """Rows 0 .. n - 1 as int64 from what NumPy takes for an index: negative numbers count from the end, or a mask.

    Raises IndexError for a row that is not there.
    """
    rows = np.asarray(indices)
    if rows.dtype == np.bool_:
        if rows.shape != (n,):
            raise IndexError(f"a mask of shape {rows.shape} for {n} samples")
        return np.flatnonzero(rows)
    rows = rows.astype(np.int64).reshape(-1)
    if rows.size and not -n <= rows.min() <= rows.max() < n:
        raise IndexError(f"rows {rows.min()} to {rows.max()} of {n} samples")
    return np.where(rows < 0, rows + n, rows)


def check_sigma_data(configured: float, measured: float) -> None:
    """Warn (SigmaDataWarning) when the configured sigma_data is more than 10 % off the measured one."""
    if abs(configured - measured) > 0.1 * measured:
        warnings.warn(
            f"sigma_data is set to {configured:.4g}, but the data's standard deviation is {measured:.4g}: "
            f"the preconditioning assumes they agree. Set sigma_data={measured:.4g} or rescale the data.",
            SigmaDataWarning,
            stacklevel=2,
        )


def label_dim_of(labels: np.ndarray, classes: tuple[str, ...] | None) -> int:
    """The entries of a vector, the number of class names, or one more than the largest class."""
    if labels.ndim == 2:
        return int(labels.shape[1])
    return len(classes) if classes is not None else int(labels.max()) + 1


def _bytes(array: np.ndarray) -> memoryview:
    stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return stored.reshape(-1).view(np.uint8).data


def _mean_and_std(pieces: Iterable[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation over all elements, one chunk in float64 at a time (Chan et al. 1979)."""
    count, mean, squares = 0, 0.0, 0.0
    for piece in pieces:
        chunk = piece.astype(np.float64)
        chunk_mean = float(chunk.mean())
        delta, total = chunk_mean - mean, count + chunk.size
        squares += float(np.square(chunk - chunk_mean).sum()) + delta**2 * count * chunk.size / total
        mean += delta * chunk.size / total
        count = total
    return mean, float(np.sqrt(squares / count))
