"""The Fréchet distance between Gaussians fitted to two sets of features (the FID, when they are Inception's)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 1e-10  # what may be wrong of the trace of the root, as a part of it
WELL = 1e-9  # pivots above this part of the largest variance are more than rounding
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

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, n: int) -> Statistics:
        """The statistics with this mean (d,) and covariance (d, d), over n - 1, of n samples.

        Raises ValueError for shapes that are none, numbers that are not finite, a covariance that is not symmetric.
        """
        mean, C = (value.detach().to("cpu", torch.float64) for value in (mean, covariance))
        if mean.ndim != 1 or C.shape != 2 * mean.shape or n < 2:
            raise ValueError(
                f"moments: got mean {tuple(mean.shape)}, covariance {tuple(C.shape)} of {n} samples; "
                "expected (d,), (d, d), at least 2"
            )
        if not bool(torch.isfinite(mean).all() and torch.isfinite(C).all()):
            raise ValueError("moments: some are NaN or infinite")
        if not torch.allclose(C, C.mT, rtol=1e-6, atol=1e-6 * float(C.abs().max())) or bool((C.diagonal() < 0).any()):
            raise ValueError("covariance: got a matrix that is not symmetric with a diagonal of at least 0")
        return cls(n, mean, (C + C.mT) / 2 * (n - 1))

    @property
    def covariance(self) -> Tensor:
        """The covariance (d, d), over n - 1. Raises ValueError for fewer than two samples."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least two samples, got {self.n}")
        return self.scatter / (self.n - 1)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared Fréchet (Wasserstein-2) distance of two Gaussians, as the FID reports it:

        |mu_a - mu_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2

    With C = R^T R the last trace is the sum of the singular values of G = R_a R_b^T: real, symmetric, and with errors
    near the machine's precision, where a matrix square root has its square root. As the roots of the eigenvalues of
    G G^T, four times as fast, wherever they are exact to `EXACT`. Warns
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
    cross = _nuclear_norm(_root(cov_a) @ _root(cov_b).mT)
    distance = shift.square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))


def _nuclear_norm(G: Tensor) -> Tensor:
    """The sum of the singular values.

    Eigenvalues l_i of the product are wrong by eps l_max at most, in practice by less, their roots by half of that over
    root l_i: where the sum of these could matter, the singular values are computed, which takes four times as long.
    """
    product = G @ G.mT if len(G) <= G.shape[1] else G.mT @ G
    squares = torch.linalg.eigvalsh(product).clamp_min_(0)
    wrong = torch.finfo(G.dtype).eps * squares.max()
    values = squares.sqrt()
    if float((wrong / (2 * torch.maximum(values, wrong.sqrt()))).sum()) <= EXACT * float(values.sum()):
        return values.sum()
    return torch.linalg.svdvals(G).sum()


def _root(covariance: Tensor) -> Tensor:
    """R (r, d) with R^T R = C of rank r.

    The Cholesky factor where C is far from singular; otherwise from the eigenvectors, which take 20 times as long:
    eigenvalues below rounding count as zeros, where a pivot that is only rounding would leave its square root. Without
    their rows the product of the roots of few samples in many dimensions is small: (n - 1) x (m - 1).
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed and float(factor.diagonal().min()) ** 2 > WELL * float(covariance.diagonal().max()):
        return factor.mT
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1:].abs() * len(values) * torch.finfo(values.dtype).eps
    return values[kept].sqrt()[:, None] * vectors.mT[kept]


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
            drawn = Statistics.of(torch.randn(s.n, len(root), generator=generator, dtype=larger.dtype) @ root)
            means.append(drawn.mean)
            covariances.append(drawn.covariance)
    return _distance(means[0] - means[1], *covariances)


def _check_dimensions(a: Statistics, b: Statistics) -> None:
    if len(a.mean) != len(b.mean):
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features cannot be compared")
