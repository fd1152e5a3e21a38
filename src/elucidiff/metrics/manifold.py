"""Precision, recall, density and coverage: fidelity and variety apart, from balls around the nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..component import require
from .distances import blocks, centred, check_sets


class PrecisionRecall(NamedTuple):
    """The part of the samples that lie among the data, and the part of the data that lie among the samples."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How densely the data surround the samples (1 for samples of the data), and the part of the data reached."""

    density: float
    coverage: float


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of features (n, d) against those of the data (m, d).

        precision = share of samples y with  |y - x| <= r_k(x)  for some x of the data;    recall: x and y exchanged

    r_k(x) is the distance of x to its k-th nearest neighbour in its own set, itself not counted. Compare values at
    the same n and m only. Raises ValueError for k < 1 and sets of k samples or fewer.
    Kynkaanniemi et al. 2019, Eqs. 1-3.
    """
    y, x = _checked(samples, reference, k)
    return PrecisionRecall(_share_within(y, x, _radii2(x, k)), _share_within(x, y, _radii2(y, k)))


def density_coverage(samples: Tensor, reference: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage of features y (n, d) against those of the data x (m, d).

        density  = 1/(k n) sum_y #{x: |y - x| <= r_k(x)}
        coverage = share of x with  |y - x| <= r_k(x)  for some y

    Balls are around data only, so that an outlier among the samples covers nothing. Density can exceed 1. For n = m
    samples of the data's own distribution coverage is 1 - (m - 1)...(m - k) / ((2m - 1)...(2m - k)), near 1 - 2^-k.
    Raises as `precision_recall`. Naeem et al. 2020, Eqs. 3 and 5.
    """
    y, x = _checked(samples, reference, k)
    radii2, inside = _radii2(x, k), 0
    covered = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for rows, d2, rounding in blocks(x, y):
        within = d2 <= radii2[rows, None] + rounding
        inside += int(within.sum())
        covered[rows] = within.any(1)
    return DensityCoverage(inside / (k * len(y)), float(covered.double().mean()))


def _checked(samples: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    require(k >= 1, f"k: got {k}; expected at least 1 neighbour")
    check_sets(samples, reference, fewest=k + 1)
    x, y = centred(reference, samples)
    return y, x


def _radii2(x: Tensor, k: int) -> Tensor:
    """Squared distances (n,) to the k-th nearest other sample of the same set."""
    found = []
    for rows, d2, _ in blocks(x, x):
        own = torch.arange(len(d2), device=x.device)
        d2[own, own + rows.start] = torch.inf
        found.append(d2.kthvalue(k, dim=1).values)
    return torch.cat(found)


def _share_within(y: Tensor, x: Tensor, radii2: Tensor) -> float:
    """The share of y that lies in the ball of at least one x."""
    inside = [(d2 <= radii2 + rounding).any(1) for _, d2, rounding in blocks(y, x)]
    return float(torch.cat(inside).double().mean())
