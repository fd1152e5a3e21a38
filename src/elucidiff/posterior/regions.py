"""Which coordinates of a sample are known: the regions of a mask."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..component import Component, require
from ..seeds import keyed

RANDOM = 101  # the stream of `keyed` that random masks come from; those of training are below 100


def spatial(shape: Sequence[int]) -> tuple[int, ...]:
    """The spatial axes of a sample: all after the channels; of a sample with one axis, that one."""
    return tuple(shape[1:]) if len(shape) > 1 else tuple(shape)


class Region(Component):
    """The known part of samples of any shape; channels share it."""

    role: ClassVar[str] = "region"

    def known(self, shape: Sequence[int]) -> Tensor:
        """True where samples of this shape are known, bool, broadcastable to it. Raises ValueError for no fit."""
        raise NotImplementedError(f"{type(self).__name__} must define known(shape)")


class Box(Region, kind="box"):
    """All but a centred box, which is `size` of the length of each spatial axis (rounded, at least 1)."""

    size: float = 0.5

    def validate(self) -> None:
        require(0 < self.size <= 1, f"Box.size: got {self.size}; expected a fraction in (0, 1]")

    def known(self, shape: Sequence[int]) -> Tensor:
        axes = spatial(shape)
        known = torch.ones(axes, dtype=torch.bool)
        lengths = [max(round(self.size * n), 1) for n in axes]
        known[tuple(slice((n - k) // 2, (n - k) // 2 + k) for n, k in zip(axes, lengths, strict=True))] = False
        return known


class Half(Region, kind="half"):
    """One half is known: left or right along the last axis, top or bottom along the one before."""

    side: Literal["left", "right", "top", "bottom"] = "left"

    def validate(self) -> None:
        sides = ("left", "right", "top", "bottom")
        require(self.side in sides, f"Half.side: got {self.side!r}; expected one of {', '.join(sides)}")

    def known(self, shape: Sequence[int]) -> Tensor:
        axes, axis = spatial(shape), 1 if self.side in ("left", "right") else 2
        require(len(axes) >= axis, f"Half.side: {self.side!r} needs two spatial axes, samples have shape {shape}")
        n = axes[-axis]
        require(n >= 2, f"Half.side: {self.side!r} needs an axis of at least 2, samples have shape {shape}")
        index = torch.arange(n)
        first = index < n // 2 if self.side in ("left", "top") else index >= n - n // 2
        return first.reshape(-1, *[1] * (axis - 1)).expand(axes)


class Random(Region, kind="random"):
    """A fraction of the places, chosen by a seed: round(fraction n) of n, at least 1."""

    fraction: float = 0.5
    seed: int = 0

    def validate(self) -> None:
        require(0 < self.fraction <= 1, f"Random.fraction: got {self.fraction}; expected a fraction in (0, 1]")
        require(self.seed >= 0, f"Random.seed: got {self.seed}; expected an integer of at least 0")

    def known(self, shape: Sequence[int]) -> Tensor:
        axes = spatial(shape)
        n = math.prod(axes)
        order = torch.from_numpy(keyed(self.seed, RANDOM).permutation(n))
        known = torch.zeros(n, dtype=torch.bool)
        known[order[: max(round(self.fraction * n), 1)]] = True
        return known.reshape(axes)


class Drawn(Region, kind="drawn"):
    """Any mask of one shape, in row-major order as run lengths: how many unknown, known, unknown, ... follow.

    `Drawn.of(known)` makes it from a boolean tensor shaped as a sample, or as its spatial axes.
    """

    shape: tuple[int, ...]
    runs: tuple[int, ...]

    @classmethod
    def of(cls, known: Tensor) -> Drawn:
        """From a boolean tensor, True where known. Raises TypeError for another dtype."""
        known = torch.as_tensor(known)
        if known.dtype != torch.bool:
            raise TypeError(f"mask: got {known.dtype}; expected torch.bool, True where a coordinate is known")
        flat = known.detach().cpu().reshape(-1).numpy()
        edges = np.flatnonzero(np.diff(flat, prepend=False))
        lengths = np.diff(edges, prepend=0, append=len(flat))
        return cls(tuple(known.shape), tuple(lengths.tolist()))

    def validate(self) -> None:
        require(all(r >= 0 for r in self.runs), "Drawn.runs: got a negative length; expected 0 or more")
        total, size = sum(self.runs), math.prod(self.shape)
        require(total == size > 0, f"Drawn.runs: add up to {total}; the shape {self.shape} has {size} elements")
        require(sum(self.runs[1::2]) > 0, "mask: nothing is known; expected at least one True")

    def known(self, shape: Sequence[int]) -> Tensor:
        allowed = (tuple(shape), spatial(shape))
        require(
            self.shape in allowed, f"mask: drawn for shape {self.shape}; samples have {shape}: expected {allowed[0]}"
        )
        values = np.arange(len(self.runs)) % 2 == 1
        return torch.from_numpy(np.repeat(values, self.runs)).reshape(self.shape)


@functools.lru_cache(maxsize=64)
def known_part(region: Region, shape: tuple[int, ...]) -> Tensor:
    """The known part in the full shape of a sample, cached. Raises ValueError when that is none of it."""
    known = region.known(shape).expand(shape).contiguous()
    require(bool(known.any()), f"mask: {region} leaves nothing known of samples of shape {shape}")
    return known
