"""The Fréchet distance between Gaussians fitted to two sets of features (the FID, when they are Inception's)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 1e-10  # what may be wrong of the trace of the root, as a part of it
DOUBTFUL = 1e-7  # of which no estimate is believed
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

    With C = R^T R the last trace is the sum of the singular values of R_a R_b^T: real, symmetric, and with errors near
    the machine's precision, where a matrix square root has its square root. Warns
    (SmallSampleWarning) with the size of the bias when n <= d. Dowson and Landau 1982; Heusel et al. 2017.
    """
    _check_dimensions(a, b)
    distance = _distance(a, b)
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


def _distance(a: Statistics, b: Statistics) -> float:
    more, fewer = (a, b) if a.n >= b.n else (b, a)  # of few samples the root is small
    traces = a.covariance.trace() + b.covariance.trace()
    return max(0.0, float((a.mean - b.mean).square().sum() + traces - 2 * _trace_of_root(more, fewer)))


def _trace_of_root(a: Statistics, b: Statistics) -> Tensor:
    """The sum of the singular values of R_a R_b^T, which is tr (C_a C_b)^1/2.

    As the roots of the eigenvalues of R_b C_a R_b^T where these are known well enough, a third of the time.
    """
    root = _root(b)
    squares = torch.linalg.eigvalsh(root @ a.covariance @ root.mT).clamp_min_(0)
    if _root_error(squares, a, root) <= EXACT:
        return squares.sqrt().sum()
    return torch.linalg.svdvals(_root(a) @ root.mT).sum()


def _root_error(squares: Tensor, a: Statistics, root: Tensor) -> float:
    """How far the sum of the roots of these eigenvalues may be off, as a part of it.

    An error e of an eigenvalue l is one of e / (2 root l). None is above eps l_max; Cholesky factors are graded, and
    small ones then known far better. What their product is, the factors' diagonals say exactly: it shows by how much
    the smallest is off, and ten times as much is assumed of all.
    """
    values, eps = squares.sqrt(), torch.finfo(squares.dtype).eps
    worst = eps * squares.max()
    relative = (worst / (2 * torch.maximum(values, worst.sqrt()))).sum() / values.sum()
    triangular = root.shape[0] == root.shape[1] and torch.equal(root, root.triu())
    if float(relative) <= EXACT or float(relative) > DOUBTFUL or not triangular or float(squares.min()) <= 0:
        return float(relative)
    other, failed = torch.linalg.cholesky_ex(a.covariance)
    if failed:
        return float(relative)
    off = squares.log().sum() - 2 * (root.diagonal().log() + other.diagonal().log()).sum()
    assumed = 10 * (off.abs() + len(squares) * eps) * squares.min()
    return float((torch.minimum(assumed, worst) / (2 * values)).sum() / values.sum())


def _root(s: Statistics) -> Tensor:
    """R (r, d) with R^T R = C of rank r.

    The Cholesky factor where C is far from singular, or far from it within the space of few samples; otherwise from the
    eigenvectors, which take 3 to 20 times as long: eigenvalues below rounding count as zeros, where a pivot that is
    only rounding would leave its square root. Of few samples the product of the roots is small: (n - 1) x (m - 1).
    """
    covariance, few = s.covariance, s.n <= len(s.mean)
    found = _root_within(covariance, s.n - 1) if few else _cholesky(covariance)
    if found is not None:
        return found
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1:].abs() * len(values) * torch.finfo(values.dtype).eps
    return values[kept].sqrt()[:, None] * vectors.mT[kept]


def _cholesky(covariance: Tensor) -> Tensor | None:
    """The upper Cholesky factor; None where a pivot is near rounding."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    well = not failed and float(factor.diagonal().min()) ** 2 > WELL * float(covariance.diagonal().max())
    return factor.mT if well else None


def _root_within(covariance: Tensor, rank: int) -> Tensor | None:
    """R (rank, d), from an orthonormal basis of the space that C maps random vectors to; None where C has another rank.

    Halko, Martinsson and Tropp 2011; for a matrix of this rank the space is exact, which its trace within shows.
    """
    random = torch.randn(len(covariance), rank, generator=torch.Generator().manual_seed(0), dtype=covariance.dtype)
    basis = torch.linalg.qr(covariance @ random).Q
    within = basis.mT @ covariance @ basis
    factor = _cholesky((within + within.mT) / 2)
    whole = float(covariance.trace())
    if factor is None or whole - float(within.trace()) > len(covariance) * torch.finfo(covariance.dtype).eps * whole:
        return None
    return factor @ basis.mT


def _bias(a: Statistics, b: Statistics) -> float:
    """The distance of two sets of the same sizes simulated from one Gaussian, that of the larger set."""
    larger = a if a.n > b.n else b
    root, generator = _root(larger), torch.Generator().manual_seed(0)

    def simulated(n: int) -> Statistics:
        if n > SIMULATED * len(larger.mean):
            return Statistics(n, torch.zeros_like(larger.mean), larger.covariance * (n - 1))
        return Statistics.of(torch.randn(n, len(root), generator=generator, dtype=root.dtype) @ root)

    return _distance(simulated(a.n), simulated(b.n))


def _check_dimensions(a: Statistics, b: Statistics) -> None:
    if len(a.mean) != len(b.mean):
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features cannot be compared")
