"""Energy distance and maximum mean discrepancy: unbiased, of vectors of any dimension, with standard errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..component import require
from .distances import blocks, centred, check_sets

FEWEST = 4
MEDIAN_OF = 1000  # samples whose distances give the median


class TwoSample(NamedTuple):
    """An unbiased estimate of a distance of two distributions, and its standard error."""

    value: float
    standard_error: float


def energy_distance(x: Tensor, y: Tensor) -> TwoSample:
    """The energy distance of samples x (n, d) and y (m, d), in the units of the data:

        2 E|x - y| - E|x - x'| - E|y - y'|

    0 exactly when the distributions are equal. The estimate is unbiased, so that it may be negative; its standard error
    holds for equal and for different distributions (see `two_sample`). No parameter, and only first moments
    are needed. Raises ValueError for fewer than 4 samples. Szekely and Rizzo 2004.
    """
    check_sets(x, y, FEWEST)
    return two_sample(lambda d2: -d2.sqrt(), *centred(x, y))


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> TwoSample:
    """The squared maximum mean discrepancy of samples x (n, d) and y (m, d), with a Gaussian kernel:

        E k(x, x') + E k(y, y') - 2 E k(x, y),    k(u, v) = exp(-|u - v|^2 / (2 bandwidth^2))

    bandwidth: the median distance within y (`median_distance`) unless given; of y alone, the reference, so that
    different samples are measured with one kernel. Unbiased, and may be negative. Raises ValueError for fewer than
    4 samples, or a bandwidth that is not positive (more than half of y are equal). Gretton et al. 2012, Eq. 3.
    """
    check_sets(x, y, FEWEST)
    width = median_distance(y) if bandwidth is None else bandwidth
    require(
        0 < width < float("inf"), f"bandwidth: got {width}; expected a positive number (the median distance may be 0)"
    )
    return two_sample(lambda d2: d2.mul_(-0.5 / width**2).exp_(), *centred(x, y))


def median_distance(y: Tensor) -> float:
    """The median distance of two samples of y (m, d), among 1,000 of them evenly spread over their order."""
    rows = torch.linspace(0, len(y) - 1, min(len(y), MEDIAN_OF)).round().long()
    (chosen,) = centred(y[rows])
    return float(torch.nn.functional.pdist(chosen).median())


def two_sample(kernel: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> TwoSample:
    """The unbiased estimate of  E k(x, x') + E k(y, y') - 2 E k(x, y)  and its standard error, in O(n + m) memory.

    kernel: squared distances -> k; it may use their memory. The variance is that of a U-statistic: with the row means
    a_i = mean_j k(x_i, x_j) - mean_j k(x_i, y_j), b_j likewise, and the variances v of the doubly centred kernels,

        4 var(a)/n + 4 var(b)/m - 2 v_xx/n^2 - 2 v_yy/m^2 - 4 v_xy/(n m)

    The var(a) of a finite sample holds the second-order terms twice, hence the subtraction; they are all that
    is left when the distributions are equal, and the least that is reported, so that the error then is right or, in
    the third of the cases in which the estimate itself is large, too large. Hoeffding 1948; Serfling 1980, 5.2.
    """
    n, m = len(x), len(y)
    xx, yy, xy = _moments(x, x, kernel, own=True), _moments(y, y, kernel, own=True), _moments(x, y, kernel)
    a, b = xx.rows - xy.rows, yy.rows - xy.columns
    second = 2 * xx.variance() / n**2 + 2 * yy.variance() / m**2 + 4 * xy.variance() / (n * m)
    variance = max(4 * float(a.var()) / n + 4 * float(b.var()) / m - second, second)
    return TwoSample(float(xx.rows.mean() + yy.rows.mean() - 2 * xy.rows.mean()), variance**0.5)


@dataclass(frozen=True)
class _Moments:
    """Means of a kernel's matrix along both sides, and of its square; the diagonal left out within one set."""

    rows: Tensor
    columns: Tensor
    square: float

    def variance(self) -> float:
        """Of the doubly centred kernel: what neither the row nor the column accounts for."""
        mean = float(self.rows.mean())
        along = float(self.rows.square().mean()) + float(self.columns.square().mean())
        return max(0.0, self.square - along + mean**2)


def _moments(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor], own: bool = False) -> _Moments:
    rows, columns, square = [], torch.zeros(len(y), dtype=x.dtype, device=x.device), 0.0
    for where, d2, _ in blocks(x, y):
        k = kernel(d2)
        if own:
            diagonal = torch.arange(len(k), device=x.device)
            k[diagonal, diagonal + where.start] = 0
        rows.append(k.sum(1))
        columns += k.sum(0)
        square += float(k.square().sum())
    others = len(y) - own
    return _Moments(torch.cat(rows) / others, columns / (len(x) - own), square / (len(x) * others))
