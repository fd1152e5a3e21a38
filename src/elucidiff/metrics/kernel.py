"""The kernel distance (the KID, when the features are Inception's): unbiased at any number of samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KernelDistance(NamedTuple):
    """A squared maximum mean discrepancy and its standard error."""

    value: float
    standard_error: float


def kernel_distance(
    x: Tensor, y: Tensor, *, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> KernelDistance:
    """Mean over random subsets of the unbiased squared MMD between features x (n, d) and y (m, d).

        k(x, y) = (x . y / d + 1)^3

    subset_size is at most 1,000 and half of the smaller set unless given. The standard error is that of the U-statistic
    of all n and m samples (Hoeffding 1948), from unbiased estimates of the variances of its two orders on each subset,
    with the error of the mean over a finite number of subsets added. The value may be negative: its expectation is 0
    when both sets come from one distribution.
    Raises ValueError for sets or subsets that are too small or too large. Binkowski et al. 2018.
    """
    n = _check(x, y, subsets)
    size = max(4, min(1000, n // 2)) if subset_size is None else subset_size
    if not 4 <= size < n:
        raise ValueError(f"subset_size: got {size}; expected 4 to {n - 1}, fewer than the {n} samples there are")
    a, b = x.detach().to("cpu", torch.float64), y.detach().to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(seed)
    found = torch.stack([_moments(_drawn(a, size, generator), _drawn(b, size, generator)) for _ in range(subsets)])
    first_a, first_b, second = found[:, 1:].mean(0)
    of_all = (4 * first_a / len(a) + 4 * first_b / len(b)).clamp_min(0) + second / 2 * (1 / len(a) + 1 / len(b)) ** 2
    of_mean = found[:, 0].var() / subsets
    return KernelDistance(float(found[:, 0].mean()), float(of_all.clamp_min(0) + of_mean) ** 0.5)


def _check(x: Tensor, y: Tensor, subsets: int) -> int:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features: got shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (n, d) and (m, d)")
    if min(len(x), len(y)) < 5:
        raise ValueError(f"features: got {len(x)} and {len(y)} samples; at least 5 are needed")
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("features: some are NaN or infinite; the samples they come from probably are too")
    if subsets < 2:
        raise ValueError(f"subsets: got {subsets}; at least 2 are needed for a standard error")
    return min(len(x), len(y))


def _drawn(features: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=generator)[:size]]


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1) ** 3


def _moments(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased squared MMD of equally many x and y, and the variances that its error is made of (4,).

    With z = (x, y) it is the mean over i != j of h(z_i, z_j) = phi(x_i, z_j) + psi(y_i, z_j), but for the diagonal of
    k(x, y). First order: the variances over x of E phi, and over y of E psi; second: what is left of that of h.
    """
    k_xx, k_yy, k_xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    value = _mean_apart(k_xx) + _mean_apart(k_yy) - 2 * k_xy.mean()
    phi, psi = _apart(k_xx - k_xy), _apart(k_yy - k_xy.mT)
    first_x, first_y = _first_order(phi), _first_order(psi)
    h = phi + psi
    of_h = _mean_apart(h.square()) - _mean_product(h)
    return torch.stack([value, first_x, first_y, of_h - 2 * (first_x + first_y)])


def _apart(f: Tensor) -> Tensor:
    """With zeros in place of f_ii."""
    return f - f.diagonal().diag()


def _mean_apart(f: Tensor) -> Tensor:
    """The mean of f_ij over i != j."""
    n = len(f)
    return (f.sum() - f.trace()) / (n * (n - 1))


def _first_order(f: Tensor) -> Tensor:
    """Unbiased: the variance over i of E_j f_ij, the diagonal being zero."""
    n, rows, squares = len(f), f.sum(1), f.square().sum(1)
    return (rows.square() - squares).sum() / (n * (n - 1) * (n - 2)) - _mean_product(f)


def _mean_product(f: Tensor) -> Tensor:
    """The mean of f_ij f_kl over distinct i, j, k and l, the diagonal being zero: (E f)^2, unbiased."""
    n, rows, columns = len(f), f.sum(1), f.sum(0)
    total = f.sum().square() - (rows + columns).square().sum() + f.square().sum() + (f * f.mT).sum()
    return total / (n * (n - 1) * (n - 2) * (n - 3))
