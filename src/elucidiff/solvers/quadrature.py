"""Weights of multistep solvers: integrals of interpolation polynomials, and which past steps they may use."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .run import Past, Run

Array = NDArray[np.float64]


def previous(
    run: Run, count: int, t: float, t_next: float, variable: Callable[[float], float] | None = None, skip: int = 0
) -> list[Past]:
    """Up to `count` past steps, newest first, that a polynomial in the variable (t when None) may go through.

    Each lies at least a tenth of the coming step above the one after it. Churn may lift t to the level of the past
    or above: there is nothing to extrapolate from then. The variable increases with t. The newest `skip` are left out.
    In a step upwards (an inversion) the past lies below, and all is mirrored.
    """
    here, ahead = (t, t_next) if variable is None else (variable(t), variable(t_next))
    sign = 1 if ahead < here else -1
    least = 0.1 * abs(here - ahead)
    found: list[Past] = []
    for past in itertools.islice(reversed(run.past), skip, None):
        there = past.t if variable is None else variable(past.t)
        if len(found) == count or sign * (there - here) <= least:
            break
        found.append(past)
        here = there
    return found


def aim(run: Run, t_next: float) -> None:
    """Leave word of where this step goes, for `arrived`."""
    run.keep("target", torch.full((), t_next, dtype=torch.float64))


def arrived(run: Run, t: float) -> bool:
    """Whether the last step aimed here and no noise came after it."""
    target = run.past[-1].kept.get("target") if run.past else None
    return target is not None and float(target) == t


def log_level(run: Run) -> Callable[[float], float]:
    """Ln sigma as a function of time, the variable -lambda of the DPM-Solver papers."""
    return lambda t: math.log(run.sigma(t))


def lagrange(nodes: Array, points: Array) -> Array:
    """The Lagrange basis of nodes (k, *) at points (*, Q), as (k, *, Q): polynomial j is 1 at node j, 0 at the rest."""
    k = len(nodes)
    rows = []
    for j in range(k):
        basis = np.ones_like(points)
        for m in range(k):
            if m != j:
                basis = basis * ((points - nodes[m][..., None]) / (nodes[j] - nodes[m])[..., None])
        rows.append(basis)
    return np.stack(rows)


@functools.lru_cache(maxsize=16)
def _gauss(n: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


@functools.lru_cache(maxsize=1024)
def levels_between(high: float, low: float) -> tuple[Array, Array]:
    """Levels sigma_q (Q,) and weights c_q (Q,) with sum c_q f(sigma_q) = integral of f d ln sigma from low to high.

    Gauss-Legendre with 10 nodes on panels of at most 1 in ln sigma: 1e-14 for the functions of sigma met here, whose
    nearest singularity, sigma = +-i, lies pi/2 beside the real axis of ln sigma.
    """
    nodes, weights = _gauss(10)
    width = math.log(high / low)
    panels = max(math.ceil(abs(width)), 1)
    offsets = (np.arange(panels)[:, None] + nodes) * (width / panels)
    return low * np.exp(offsets.ravel()), np.tile(weights * (width / panels), panels)


def scaled(weight: float | Tensor, x: Tensor) -> Tensor:
    """Weight times x; x itself where the weight is the number 1, as s is without scaling."""
    return x if isinstance(weight, float) and weight == 1 else weight * x


def combination(x: Tensor, weight: float | Tensor, terms: Sequence[tuple[float | Tensor, Tensor]]) -> Tensor:
    """Weight x + the sum of w y over the terms (w, y), at least one; weights are numbers or broadcast to x."""
    total = scaled(weight, x)
    if total is x:  # then the first sum makes the new tensor
        (w, y), *terms = terms
        total = torch.addcmul(x, w, y) if isinstance(w, Tensor) else torch.add(x, y, alpha=w)
    for w, y in terms:
        if isinstance(w, Tensor):
            total.addcmul_(w, y)
        else:
            total.add_(y, alpha=w)
    return total
