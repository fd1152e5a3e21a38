"""Transforms of positions: scaling, rotation, stretching, fractional translation; together they are one resampling."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .transform import POSITIONS, Transform, angle, circle, normal


class Geometric(Transform):
    """A linear map of positions p, measured in pixels from the centre, x right, y down, z back.

    The value at output position p is the input at q = M p; a pipeline multiplies the maps in its order.
    """

    stage: ClassVar[int] = POSITIONS

    def matrix(self, w: Tensor, size: tuple[int, ...]) -> Tensor:
        """M (B, dims + 1, dims + 1) for parameters w (B, width), acting on (x, y, z, 1); size is (.., H, W)."""
        raise NotImplementedError


class Scale(Geometric, kind="scale"):
    """Enlarged by 2^(std w), w ~ N(0, 1)."""

    formula: ClassVar[str] = "q = 2^(-std w) p"
    std: float = 0.2

    def parameters(self, u: Tensor) -> Tensor:
        """The strength w, normal."""
        return normal(u)

    def matrix(self, w: Tensor, size: tuple[int, ...]) -> Tensor:
        """2^(-std w) on the diagonal."""
        return _linear(torch.exp2(-self.std * w)[:, :, None] * torch.eye(len(size), dtype=w.dtype))


class Rotation(Geometric, kind="rotation"):
    """Images turned counter-clockwise on screen by an angle a ~ U(-pi, pi)."""

    formula: ClassVar[str] = "q = [[cos a, -sin a], [sin a, cos a]] p"
    dims: ClassVar[tuple[int, ...]] = (2,)

    def entries(self, dims: int) -> int:
        """Two: cos a - 1, sin a."""
        return 2

    def parameters(self, u: Tensor) -> Tensor:
        """The angle."""
        return angle(u)

    def labels(self, w: Tensor) -> Tensor:
        """(cos a - 1, sin a)."""
        return circle(w)

    def matrix(self, w: Tensor, size: tuple[int, ...]) -> Tensor:
        """Rot(a)."""
        return _linear(_rot(w[:, 0]))


class Anisotropic(Geometric, kind="anisotropic"):
    """Images stretched by 2^(std w) along an axis at angle r and by 2^(-std w) across it, w ~ N(0, 1).

    r = 0 with chance 1/2, else U(-pi, pi). Parameters are (w, r), the label is (w cos r, w sin r).
    """

    formula: ClassVar[str] = "q = Rot(-r) diag(2^(-std w), 2^(std w)) Rot(r) p"
    dims: ClassVar[tuple[int, ...]] = (2,)
    std: float = 0.2

    def width(self, dims: int) -> int:
        """Two: w and r."""
        return 2

    def numbers(self, dims: int) -> int:
        """Three: for w, for whether r is 0, for r."""
        return 3

    def parameters(self, u: Tensor) -> Tensor:
        """(w, r)."""
        return torch.stack([normal(u[:, 0]), torch.where(u[:, 1] < 0.5, 0.0, angle(u[:, 2]))], dim=1)

    def labels(self, w: Tensor) -> Tensor:
        """(w cos r, w sin r)."""
        strength, r = w.unbind(1)
        return torch.stack([strength * r.cos(), strength * r.sin()], dim=1)

    def matrix(self, w: Tensor, size: tuple[int, ...]) -> Tensor:
        """Rot(-r) diag(2^(-std w), 2^(std w)) Rot(r)."""
        strength, r = w.unbind(1)
        factors = torch.exp2(torch.stack([-self.std * strength, self.std * strength], dim=1))
        return _linear(_rot(-r) @ torch.diag_embed(factors) @ _rot(r))


class Translation(Geometric, kind="translation"):
    """Moved right, down and back by std w size pixels, fractions included, w ~ N(0, I)."""

    formula: ClassVar[str] = "q = p - std w size"
    std: float = 0.125

    def width(self, dims: int) -> int:
        """One an axis: w_x, w_y, w_z."""
        return dims

    def parameters(self, u: Tensor) -> Tensor:
        """The strength w, normal."""
        return normal(u)

    def matrix(self, w: Tensor, size: tuple[int, ...]) -> Tensor:
        """The identity with -std w size as its last column."""
        m = _linear(torch.eye(len(size), dtype=w.dtype).expand(len(w), -1, -1))
        m[:, :-1, -1] = -self.std * w * torch.tensor(size[::-1], dtype=w.dtype)
        return m


def _rot(a: Tensor) -> Tensor:
    """[[cos a, -sin a], [sin a, cos a]], (B, 2, 2)."""
    return torch.stack([torch.stack([a.cos(), -a.sin()], -1), torch.stack([a.sin(), a.cos()], -1)], -2)


def _linear(m: Tensor) -> Tensor:
    """A linear map (B, d, d) in homogeneous coordinates (B, d + 1, d + 1)."""
    d = m.shape[-1]
    whole = torch.zeros(len(m), d + 1, d + 1, dtype=m.dtype)
    whole[:, :d, :d] = m
    whole[:, d, d] = 1
    return whole
