"""The role: one transform of the data, its parameters and what the network is told of them."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..component import Component, require

PIXELS, POSITIONS, COLOURS = 0, 1, 2  # the stages of a pipeline, in the order in which they are done


class Transform(Component):
    """One transform, as a frozen value; a pipeline (`Augment`) draws its parameters and applies it.

    p: the chance that a sample is transformed; None takes that of the pipeline.

    Parameters are (B, width(dims)) float64, 0 where the transform is not applied, and are computed from uniform
    numbers (B, numbers(dims)), so that drawing is a pure function. dims is the number of spatial axes, and
    axes are counted from the last: x is the last one, y the one before, z the one before that.
    """

    role: ClassVar[str] = "transform"
    references: ClassVar[tuple[str, ...]] = ("edm", "ada")
    stage: ClassVar[int] = PIXELS
    dims: ClassVar[tuple[int, ...]] = (1, 2, 3)  # the numbers of spatial axes it is defined for
    p: float | None = None

    def validate(self) -> None:
        """Raise ValueError where the chance is not one, or a strength (std, max) is not above 0."""
        require(self.p is None or 0 <= self.p <= 1, f"{self.kind}.p: got {self.p}; expected a chance in [0, 1] or null")
        for name in ("std", "max"):
            value = getattr(self, name, 1.0)
            require(0 < value < math.inf, f"{self.kind}.{name}: got {value}; expected a number above 0")

    def width(self, dims: int) -> int:
        """How many parameters a sample has."""
        return 1

    def numbers(self, dims: int) -> int:
        """How many uniform numbers they are made of."""
        return self.width(dims)

    def entries(self, dims: int) -> int:
        """How many entries of the augment label tell them."""
        return self.width(dims)

    def parameters(self, u: Tensor) -> Tensor:
        """The parameters (B, width) that uniform numbers u (B, numbers) in (0, 1) stand for, transform applied."""
        raise NotImplementedError

    def labels(self, w: Tensor) -> Tensor:
        """The augment label (B, entries) of parameters w (B, width); 0 for parameters 0."""
        return w

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless samples of this shape (C, *size) can be transformed."""


def normal(u: Tensor) -> Tensor:
    """Uniform numbers as standard normal ones, by the quantile; 0 is taken as 2^-54, so that none is infinite."""
    return torch.special.ndtri(u.clamp(min=2.0**-54))


def angle(u: Tensor) -> Tensor:
    """Uniform numbers as angles in [-pi, pi)."""
    return math.pi * (2 * u - 1)


def circle(a: Tensor) -> Tensor:
    """(cos a - 1, sin a): an angle (B, 1) without a jump at +-pi, and 0 for no rotation."""
    return torch.cat([a.cos() - 1, a.sin()], dim=1)
