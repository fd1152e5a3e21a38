"""Transforms that move whole pixels and invent none: flips, rotations by 90 degrees, integer shifts."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..component import require
from .transform import PIXELS, Transform, circle


class Pixels(Transform):
    """A transform done on the pixels as they are."""

    stage: ClassVar[int] = PIXELS

    def move(self, x: Tensor, w: Tensor) -> Tensor:
        """Samples (B, C, *size) moved by parameters w (B, width), on the same device."""
        raise NotImplementedError


class Flip(Pixels):
    """Mirrored along one axis where w = 1; w is 0 or 1 with equal chance."""

    axis: ClassVar[int] = -1

    def parameters(self, u: Tensor) -> Tensor:
        """1 for the upper half of the numbers, else 0."""
        return (u >= 0.5).to(u.dtype)

    def move(self, x: Tensor, w: Tensor) -> Tensor:
        """Mirrored where w = 1."""
        return torch.where(_per_sample(w[:, 0] != 0, x), x.flip(self.axis), x)


class XFlip(Flip, kind="xflip"):
    """Left and right exchanged. Drawn for every sample (p = 1), so that half of them are flipped."""

    p: float | None = 1.0


class YFlip(Flip, kind="yflip"):
    """Up and down exchanged, with chance p / 2."""

    axis: ClassVar[int] = -2
    dims: ClassVar[tuple[int, ...]] = (2, 3)


class ZFlip(Flip, kind="zflip"):
    """Front and back of a volume exchanged, with chance p / 2."""

    axis: ClassVar[int] = -3
    dims: ClassVar[tuple[int, ...]] = (3,)


class Rotate90(Pixels, kind="rotate90"):
    """Square images turned counter-clockwise by w quarters, w = 0, 1, 2 or 3 with equal chance."""

    dims: ClassVar[tuple[int, ...]] = (2,)

    def entries(self, dims: int) -> int:
        """Two: cos - 1 and sin of the angle."""
        return 2

    def parameters(self, u: Tensor) -> Tensor:
        """The number of quarters."""
        return (4 * u).floor()

    def labels(self, w: Tensor) -> Tensor:
        """(cos a - 1, sin a) for a = w pi / 2, whole numbers."""
        return circle(w * (math.pi / 2)).round()

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the images are square."""
        require(shape[-1] == shape[-2], f"rotate90: got images of {shape[-2]} x {shape[-1]}; expected square ones")

    def move(self, x: Tensor, w: Tensor) -> Tensor:
        """Turned by w quarters."""
        turned = x
        for k in (1, 2, 3):
            turned = torch.where(_per_sample(w[:, 0] == k, x), torch.rot90(x, k, (-2, -1)), turned)
        return turned


class Shift(Pixels, kind="shift"):
    """Moved by whole pixels, reflecting at the border: round(max w size) along each axis, w ~ U(-1, 1)."""

    max: float = 0.125

    def width(self, dims: int) -> int:
        """One an axis: x, y, z."""
        return dims

    def parameters(self, u: Tensor) -> Tensor:
        """The shift w, uniform in (-1, 1)."""
        return 2 * u - 1

    def move(self, x: Tensor, w: Tensor) -> Tensor:
        """Content moves right, down and back where w > 0."""
        for k in range(w.shape[1]):
            axis, size = x.ndim - 1 - k, x.shape[-1 - k]
            pixels = (self.max * size * w[:, k : k + 1]).round().long()
            source = reflected(torch.arange(size, device=x.device) - pixels, size)
            view = [len(x)] + [1] * (x.ndim - 1)
            view[axis] = size
            x = x.gather(axis, source.reshape(view).expand_as(x))
        return x


def reflected(index: Tensor, size: int) -> Tensor:
    """Any integer positions folded into 0 .. size - 1 by reflection that repeats no edge pixel."""
    if size == 1:
        return torch.zeros_like(index)
    folded = index.remainder(2 * size - 2)
    return torch.minimum(folded, 2 * size - 2 - folded)


def _per_sample(choice: Tensor, x: Tensor) -> Tensor:
    return choice.reshape(-1, *[1] * (x.ndim - 1))
