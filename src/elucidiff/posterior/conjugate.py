"""Conjugate gradients for a batch of systems, each row on its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows, shaped to multiply them: (B, 1, ...)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def conjugate_gradients(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]], b: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """(v, B v) with M v = b, for a symmetric positive M and a B that comes with it: apply(p) -> (M p, B p).

    b is (B, *). A row is done when its residual is `tolerance` of |b|, or when M is seen not to be positive along the
    next direction, as for a Jacobian that only a network made symmetric: what it has is then kept. Rows that are done
    do not move, so none depends on the others. B v is summed up on the way, which saves one product.
    (Hestenes and Stiefel 1952.)
    """
    residual = direction = b
    size = start = _dot(b, b)
    v, Bv = torch.zeros_like(b), torch.zeros(())
    active = start > 0
    for _ in range(iterations):
        if not bool(active.any()):
            break
        product, aside = apply(direction)
        curvature = _dot(direction, product)
        active = active & (curvature > 0)
        step = torch.where(active, size / torch.where(active, curvature, 1.0), 0.0)
        v = v + step * direction
        Bv = Bv + step.reshape(-1, *[1] * (aside.ndim - 1)) * aside
        residual = residual - step * product
        before, size = size, torch.where(active, _dot(residual, residual), size)
        direction = residual + torch.where(active, size / torch.where(active, before, 1.0), 0.0) * direction
        active = active & (size > tolerance**2 * start)
    if Bv.ndim == 0:  # nothing to solve
        Bv = torch.zeros_like(apply(b)[1])
    return v, Bv
