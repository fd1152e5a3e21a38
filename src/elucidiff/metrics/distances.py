"""Distances between two sets of vectors, a block of rows at a time, so that n^2 numbers are never held."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..component import require
from ..tensors import widest_dtype

BLOCK = 1 << 22  # distances held at a time: 32 MB
ROUNDING = 1e-11  # of |x|^2 + |y|^2: what a product of matrices in float64 gets wrong in |x - y|^2, with room


def check_sets(x: Tensor, y: Tensor, fewest: int = 1) -> None:
    """Raise ValueError unless x (n, d) and y (m, d) are finite and have at least `fewest` rows each."""
    require(
        x.ndim == 2 and y.ndim == 2 and x.shape[1] == y.shape[1],
        f"features: got shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (n, d) and (m, d)",
    )
    require(min(len(x), len(y)) >= fewest, f"features: got {len(x)} and {len(y)} samples; at least {fewest} are needed")
    require(
        bool(torch.isfinite(x).all() and torch.isfinite(y).all()),
        "features: some are NaN or infinite; the samples they come from probably are too",
    )


def centred(*sets: Tensor) -> list[Tensor]:
    """The sets in float64, less the mean of the first: a common offset costs no digits of the distances.

    They stay on the device of the first, unless that has no float64 (mps).
    """
    device = sets[0].device if widest_dtype(sets[0].device) == torch.float64 else "cpu"
    wide = [s.detach().to(device, torch.float64) for s in sets]
    mean = wide[0].mean(0)
    return [s - mean for s in wide]


def blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, |x_i - y_j|^2, its rounding) for successive rows i of x and all j; rounding has the same shape.

    By a product of matrices, 5 to 20 times faster than the differences. Two distances that differ by less than the
    rounding are to count as equal: data on a grid, and copies, have many such.
    """
    xx, yy = x.square().sum(1), y.square().sum(1)
    size = max(1, BLOCK // max(1, len(y)))
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        scale = xx[rows, None] + yy
        yield rows, torch.addmm(scale, x[rows], y.mT, alpha=-2).clamp_min_(0), scale.mul_(ROUNDING)
