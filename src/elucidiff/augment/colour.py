"""Transforms of colours: maps of the channels, the same for every pixel of a sample. GAN training has them, EDM not."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..component import require
from .transform import COLOURS, Transform, angle, circle, normal


class Colour(Transform):
    """An affine map of the channels, c -> A c + b; a pipeline multiplies the maps, the first one done first.

    The luma axis is v = (1, .., 1) / sqrt(C): what is grey.
    """

    stage: ClassVar[int] = COLOURS

    def matrix(self, w: Tensor, channels: int) -> Tensor:
        """[[A, b], [0, 1]] (B, C + 1, C + 1) for parameters w (B, width)."""
        raise NotImplementedError


class Brightness(Colour, kind="brightness"):
    """std w added to all channels, w ~ N(0, 1)."""

    formula: ClassVar[str] = "c + std w"
    std: float = 0.2

    def parameters(self, u: Tensor) -> Tensor:
        """The strength w, normal."""
        return normal(u)

    def matrix(self, w: Tensor, channels: int) -> Tensor:
        """The identity with std w as its last column."""
        m = _affine(torch.eye(channels, dtype=w.dtype).expand(len(w), -1, -1))
        m[:, :-1, -1] = self.std * w
        return m


class Contrast(Colour, kind="contrast"):
    """All channels multiplied by 2^(std w), w ~ N(0, 1)."""

    formula: ClassVar[str] = "2^(std w) c"
    std: float = 0.5

    def parameters(self, u: Tensor) -> Tensor:
        """The strength w, normal."""
        return normal(u)

    def matrix(self, w: Tensor, channels: int) -> Tensor:
        """2^(std w) on the diagonal."""
        return _affine(torch.exp2(self.std * w)[:, :, None] * torch.eye(channels, dtype=w.dtype))


class LumaFlip(Colour, kind="luma_flip"):
    """Light and dark exchanged, hue kept, where w = 1; w is 0 or 1 with equal chance."""

    formula: ClassVar[str] = "(I - 2 v vᵀ) c"

    def parameters(self, u: Tensor) -> Tensor:
        """1 for the upper half of the numbers, else 0."""
        return (u >= 0.5).to(u.dtype)

    def matrix(self, w: Tensor, channels: int) -> Tensor:
        """I - 2 w v v^T."""
        return _affine(torch.eye(channels, dtype=w.dtype) - 2 * w[:, :, None] * _luma(channels, w.dtype))


class Hue(Colour, kind="hue"):
    """Three channels turned about the luma axis by an angle a ~ U(-pi, pi)."""

    formula: ClassVar[str] = "Rot(v, a) c"

    def entries(self, dims: int) -> int:
        """Two: cos a - 1, sin a."""
        return 2

    def parameters(self, u: Tensor) -> Tensor:
        """The angle."""
        return angle(u)

    def labels(self, w: Tensor) -> Tensor:
        """(cos a - 1, sin a)."""
        return circle(w)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless there are three channels."""
        require(shape[0] == 3, f"hue: got samples of {shape[0]} channels; expected 3, or leave hue out")

    def matrix(self, w: Tensor, channels: int) -> Tensor:
        """R = cos a I + (1 - cos a) v v^T + sin a [v]_x (Rodrigues)."""
        a, s = w[:, :, None], 1 / math.sqrt(3)
        cross = torch.tensor([[0, -s, s], [s, 0, -s], [-s, s, 0]], dtype=w.dtype)
        eye = torch.eye(3, dtype=w.dtype)
        return _affine(a.cos() * eye + (1 - a.cos()) * _luma(3, w.dtype) + a.sin() * cross)


class Saturation(Colour, kind="saturation"):
    """What is not grey multiplied by 2^(std w), w ~ N(0, 1); of one channel nothing."""

    formula: ClassVar[str] = "(v vᵀ + 2^(std w) (I - v vᵀ)) c"
    std: float = 1.0

    def parameters(self, u: Tensor) -> Tensor:
        """The strength w, normal."""
        return normal(u)

    def matrix(self, w: Tensor, channels: int) -> Tensor:
        """The map v v^T + 2^(std w) (I - v v^T)."""
        grey = _luma(channels, w.dtype)
        return _affine(grey + torch.exp2(self.std * w)[:, :, None] * (torch.eye(channels, dtype=w.dtype) - grey))


def _luma(channels: int, dtype: torch.dtype) -> Tensor:
    """The projection v v^T on what is grey."""
    return torch.full((channels, channels), 1 / channels, dtype=dtype)


def _affine(m: Tensor) -> Tensor:
    """A linear map (B, C, C) in homogeneous coordinates."""
    c = m.shape[-1]
    whole = torch.zeros(len(m), c + 1, c + 1, dtype=m.dtype)
    whole[:, :c, :c] = m
    whole[:, c, c] = 1
    return whole
