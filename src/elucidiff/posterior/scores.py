"""How good restorations are: several samples of each measurement against the truth it was made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..component import require
from .operators import Mask, Operator


@dataclass(frozen=True)
class RestorationScore:
    """Scores over the unknown coordinates, in units of the data; smaller is better, but for psnr.

    rmse: of single samples. rmse_of_mean: of the mean of each measurement's samples, which estimates the posterior
    mean, the best guess there is. psnr: of that mean in dB, for a peak of 2 (images in [-1, 1]).
    energy: E|X - x0| - E|X - X'| / 2 over samples X, X' of one measurement, norms divided by sqrt(coordinates); a
    strictly proper score (Gneiting and Raftery 2007): only samples of the true posterior have the smallest, neither
    blurred means nor lucky details do. NaN for one sample a measurement. energy_error: its standard error over the
    measurements.
    """

    rmse: float
    rmse_of_mean: float
    psnr: float
    energy: float
    energy_error: float
    measurements: int
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON data; what is not a number is None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in self.__dict__.items()}


def unknown_part(operator: Operator, shape: tuple[int, ...]) -> Tensor:
    """Which coordinates are restored, bool of that shape: what a mask leaves unknown, all for other operators.

    Raises ValueError for a mask that leaves nothing to restore.
    """
    if not isinstance(operator, Mask):
        return torch.ones(shape, dtype=torch.bool)
    unknown = ~operator.known(shape)
    require(bool(unknown.any()), "mask: everything is known; nothing is left to restore")
    return unknown


def energy_scores(samples: Tensor, truth: Tensor) -> Tensor:
    """The energy score of each measurement, (n,): samples (n, k, d), truth (n, d), k at least 2."""
    k = samples.shape[1]
    scale = math.sqrt(samples.shape[2])
    off = (samples - truth[:, None]).norm(dim=2).mean(1)
    apart = torch.stack([torch.pdist(rows).mean() if k > 1 else rows.new_tensor(math.nan) for rows in samples])
    return (off - apart / 2) / scale


def score_restorations(samples: Tensor, truth: Tensor, operator: Operator) -> RestorationScore:
    """Scores of samples (n k, *), k in a row for each measurement, against the truths (n, *).

    Raises ValueError when the numbers or the shapes do not fit.
    """
    n = len(truth)
    require(
        n > 0 and len(samples) % n == 0 and len(samples) > 0 and samples.shape[1:] == truth.shape[1:],
        f"samples: got {tuple(samples.shape)}; expected (n k, *) for truths {tuple(truth.shape)}",
    )
    unknown = unknown_part(operator, tuple(truth.shape[1:])).reshape(-1)
    x0 = truth.detach().cpu().double().flatten(1)[:, unknown]
    X = samples.detach().cpu().double().flatten(1)[:, unknown].unflatten(0, (n, -1))
    energy = energy_scores(X, x0)
    of_mean = float((X.mean(1) - x0).square().mean().sqrt())
    return RestorationScore(
        rmse=float((X - x0[:, None]).square().mean().sqrt()),
        rmse_of_mean=of_mean,
        psnr=20 * math.log10(2 / of_mean) if of_mean > 0 else math.inf,
        energy=float(energy.mean()),
        energy_error=float(energy.std() / math.sqrt(n)) if n > 1 else math.nan,
        measurements=n,
        samples=X.shape[1],
    )
