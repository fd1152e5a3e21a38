"""The Fréchet distance between Gaussians fitted to two sets of features (the FID, when they are Inception's)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

SIMULATED = 10  # sets of up to 10 d samples are simulated for the bias; larger ones count as exact


class SmallSampleWarning(UserWarning):
    """There are no more samples than dimensions, so the distance is mostly bias."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of n features of dimension d, in float64; sets merge without being kept.

    A value: `update` and `merge` return the new statistics.
    """

    n: int
    mean: Tensor  # (d,)
    scatter: Tensor  # (d, d): sum of (f - mean) (f - mean)^T

    @classmethod
    def empty(cls, d: int) -> Statistics:
        """The statistics of no samples, to start from."""
        return cls(0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """The statistics of features (n, d). Raises ValueError for another rank, NaN or infinity."""
        f = features.detach().to("cpu", torch.float64)
        if f.ndim != 2 or len(f) == 0:
            raise ValueError(f"features: got shape {tuple(f.shape)}; expected (n, d) with n >= 1")
        if not bool(torch.isfinite(f).all()):
            raise ValueError("features: some are NaN or infinite; the samples they come from probably are too")
        mean = f.mean(0)
        centred = f - mean
        return cls(len(f), mean, centred.mT @ centred)

    def update(self, features: Tensor) -> Statistics:
        """The statistics with these features (m, d) added."""
        return self.merge(Statistics.of(features))

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both sets together (Chan, Golub and LeVeque 1979)."""
        _check_dimensions(self, other)
        n = self.n + other.n
        if n == 0:
            return self
        delta = other.mean - self.mean
        between = torch.outer(delta, delta) * (self.n * other.n / n)
        return Statistics(n, self.mean + delta * (other.n / n), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """The covariance (d, d), over n - 1. Raises ValueError for fewer than two samples."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least two samples, got {self.n}")
        return self.scatter / (self.n - 1)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared Fréchet (Wasserstein-2) distance of two Gaussians, as the FID reports it:

        |mu_a - mu_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2

    With C = R^T R the last trace is the sum of the singular values of R_a R_b^T: real, symmetric, and
    with errors near the machine's precision, where a matrix square root has its square root. Warns
    (SmallSampleWarning) with the size of the bias when n <= d. Dowson and Landau 1982; Heusel et al. 2017.
    """
    _check_dimensions(a, b)
    distance = _distance(a.mean - b.mean, a.covariance, b.covariance)
    d = len(a.mean)
    if min(a.n, b.n) <= d:
        warnings.warn(
            f"Fréchet distance {distance:.4g} of {a.n:,} against {b.n:,} samples in {d} dimensions: two sets of these "
            f"sizes drawn from one Gaussian would be about {_bias(a, b):.4g} apart. Use more than {d} samples, "
            "better ten times as many, or the kernel distance, which is unbiased.",
            SmallSampleWarning,
            stacklevel=2,
        )
    return distance


def _distance(shift: Tensor, cov_a: Tensor, cov_b: Tensor) -> float:
    cross = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b).mT).sum()
    distance = shift.square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))


def _root(covariance: Tensor) -> Tensor:
    """R with R^T R = C, from the eigenvectors; eigenvalues below rounding count as the zeros they are."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = values[-1:].abs() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > rounding, values, 0).sqrt()[:, None] * vectors.mT


def _bias(a: Statistics, b: Statistics) -> float:
    """The distance of two sets of the same sizes simulated from one Gaussian, that of the larger set."""
    larger = (a if a.n > b.n else b).covariance
    root, generator = _root(larger), torch.Generator().manual_seed(0)
    means, covariances = [], []
    for s in (a, b):
        if s.n > SIMULATED * len(larger):
            means.append(torch.zeros_like(s.mean))
            covariances.append(larger)
        else:
            drawn = Statistics.of(torch.randn(s.n, len(larger), generator=generator, dtype=larger.dtype) @ root)
            means.append(drawn.mean)
            covariances.append(drawn.covariance)
    return _distance(means[0] - means[1], *covariances)


def _check_dimensions(a: Statistics, b: Statistics) -> None:
    if len(a.mean) != len(b.mean):
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features cannot be compared")
