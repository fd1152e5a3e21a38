"""Brownian paths that are pure functions of a seed: the same noise for any number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .seeds import _seek, check_seeds

STREAM = 101  # of the Philox key (seed, stream); the training streams are those of seeds.Stream
REACH = 64.0  # the clock u runs over [-64, 64): as u = ln sigma, sigma from 1.6e-28 to 6.2e27
DEPTH = 12  # halvings of that range: the smallest cells are 1/32 wide


class _Cell(NamedTuple):
    """An interval of the clock: the path at both ends, and sqrt(width) times the normal numbers of its inside."""

    number: int
    left: Tensor
    right: Tensor
    bump: Tensor

    def at(self, f: float) -> Tensor:
        """The path at the fraction f of the cell: the Brownian bridge's mean and standard deviation."""
        mean = torch.lerp(self.left, self.right, f)
        return mean.add_(self.bump, alpha=math.sqrt(f * (1 - f)))


class Brownian:
    """W(u) (B, *shape) float64 for a clock u in [-64, 64): one standard Brownian path a sample and element.

    A binary tree: the middle of a cell is drawn given its ends (a Brownian bridge), with normal numbers from
    Philox at key (seed, STREAM) and counter (level, cell). So W(u) depends on the seed and on u alone: not on what
    was asked before, on the batch or on the steps, and W(c) - W(a) = (W(c) - W(b)) + (W(b) - W(a)).

    Halving ends with cells 1/32 wide, where one number closes the bridge: W(u) = the mean between the ends
    + sqrt(f (1 - f) width) Z. At points in different cells the law is exactly that of Brownian motion, and for one
    point between the ends of its cell; within a cell the path is smooth, so increments much shorter than 1/32 are
    correlated. The integral of a function that varies like exp(2 u) keeps its variance to 3e-4 however fine the steps.

    A query draws for the cells that the one before had not entered, about 7 for a step of 1/2; one takes about 30
    microseconds a sample of 3 x 32 x 32. The 13 cells around the latest query are kept in memory.
    (Gaines and Lyons 1997; Li, Wong, Chen and Duvenaud 2020, virtual Brownian tree.)
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        self._seeds, self._shape = check_seeds(seeds), tuple(shape)
        self._philox = np.random.Generator(np.random.Philox())
        zero = torch.zeros(len(self._seeds), *self._shape, dtype=torch.float64)
        end = math.sqrt(2 * REACH) * self._normal(0, 0)
        self._path = [_Cell(0, zero, end, math.sqrt(2 * REACH) * self._normal(1, 0))]

    def at(self, u: float) -> Tensor:
        """W(u), with W(-64) = 0. Raises ValueError for a u outside [-64, 64)."""
        y = (u + REACH) / (2 * REACH)
        if not 0 <= y < 1:
            raise ValueError(f"Brownian path: got u={u:g}; expected a number from {-REACH:g} to {REACH:g}")
        for level in range(1, DEPTH + 1):
            index = int(y * 2**level)  # exact: 2^level only shifts the exponent
            if level == len(self._path) or self._path[level].number != index:
                del self._path[level:]
                self._path.append(self._child(self._path[-1], level, index))
        return self._path[-1].at(y * 2**DEPTH - index)

    def increment(self, a: float, b: float) -> Tensor:
        """(W(b) - W(a)) / sqrt(|b - a|) (B, *shape): standard normal, independent for intervals that do not overlap."""
        start = self.at(a)
        return self.at(b).sub_(start).div_(math.sqrt(abs(b - a)))

    def _child(self, parent: _Cell, level: int, index: int) -> _Cell:
        middle = parent.at(0.5)
        left, right = (middle, parent.right) if index % 2 else (parent.left, middle)
        return _Cell(index, left, right, math.sqrt(2 * REACH * 0.5**level) * self._normal(level + 1, index))

    def _normal(self, level: int, index: int) -> Tensor:
        """Standard normal numbers (B, *shape), row k of the stream of sample k at (level, index); up to 5.4 in size.

        By the inverse of the distribution function in float32, half the time of numpy's own; row by row, so that
        the bits of a row do not depend on where it lies in the batch.
        """
        count = math.prod(self._shape)
        rows = torch.empty(len(self._seeds), count, dtype=torch.float64)
        for row, seed in zip(rows, self._seeds, strict=True):
            _seek(self._philox, seed, STREAM, level, index)
            bits = self._philox.bit_generator.random_raw((count + 1) // 2).view(np.int32)[:count]
            row.copy_(torch.from_numpy(bits).float().mul_(2**-31).clamp_(-1 + 2**-24, 1 - 2**-24).erfinv_())
        return rows.mul_(math.sqrt(2)).reshape(-1, *self._shape)
