"""Data sets whose samples stay in files, and are read when a batch asks for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import FormatError
from .dataset import Dataset, label_dim_of, names_at, rows_of
from .images import from_uint8
from .skipping import substitutes

DEFAULTS: dict[str, Any] = {
    "classes": None, "name": "data", "source": "", "label_dim": 0, "left_out": 0, "skips": False,
}  # fmt: skip


class Lazy(Dataset):
    """A Dataset whose values are read anew: subclasses say how many there are, of what shape, and read some of them.

    skips: whether in the place of a sample whose file is damaged comes the next of the data that can be read.
    """

    skips: bool

    def __init__(self, **fields: Any) -> None:
        for field, value in (DEFAULTS | {"labels": None, "names": None, "condition": None} | fields).items():
            object.__setattr__(self, field, value)
        if self.labels is not None:
            self._check_labels(self.labels)
            object.__setattr__(self, "label_dim", self.label_dim or label_dim_of(self.labels, self.classes))

    def read(self, chosen: np.ndarray) -> np.ndarray:
        """The samples of these rows, each between 0 and N - 1: uint8 (B, C, H, W), or float32 (B, *)."""
        raise NotImplementedError(f"{type(self).__name__} must define read(chosen)")

    @property
    def values(self) -> np.ndarray:  # a field there, read anew here
        """All samples, in memory: uint8 (N, C, H, W), or float32 (N, *)."""
        return self.read(np.arange(len(self)))

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> tuple[Tensor, Tensor | None]:
        """Samples (B, *) float32, images as x / 127.5 - 1, and their labels (B, label_dim), one-hot or soft."""
        _, y, labels = self.batch_read(indices)
        return y, labels

    def batch_read(self, indices: Sequence[int] | np.ndarray | Tensor) -> tuple[np.ndarray, Tensor, Tensor | None]:
        """The rows that were read, their samples and labels."""
        rows = rows_of(indices, len(self))
        try:
            found = self.read(rows)
        except FormatError:
            if not self.skips:
                raise
            rows = substitutes(len(self), rows, self._check, self.source or self.name)
            found = self.read(rows)
        y = torch.from_numpy(found)
        return rows, from_uint8(y) if self.is_image else y, self._label_rows(rows)

    def _check(self, row: int) -> None:
        self.read(np.array([row]))

    def skipping(self) -> Dataset:
        """The same samples, of which damaged ones are skipped."""
        other = copy.copy(self)
        object.__setattr__(other, "skips", True)
        return other

    def moments(self) -> tuple[float, float]:
        """(mean, sigma_data) of `measured()`, measured once."""
        return self._moments_once

    @cached_property
    def _moments_once(self) -> tuple[float, float]:
        return self._measure()

    def _measure(self) -> tuple[float, float]:
        return super().moments()

    def fields_at(self, chosen: np.ndarray) -> dict[str, Any]:
        """What is kept in memory, of these rows."""
        labels = None if self.labels is None else self.labels[chosen]
        return {n: getattr(self, n) for n in DEFAULTS} | {"labels": labels, "names": names_at(self.names, chosen)}
