"""The exact solution of Eq. 4, finely solved: what steps, jumps and guesses are measured against.

In unscaled units x_hat = x / s the solution is a function of sigma alone, d x_hat / d sigma = (x_hat - D) / sigma, so
one path serves every schedule and scaling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..component import require
from ..denoiser import Denoiser, as_denoiser, evaluation_mode
from ..progress import bar
from ..request import Request
from ..sampler import Sampler

Model = Denoiser | Callable[..., Tensor]
Labels = Tensor | Sequence[int] | int | None

TAIL = 2.0**-6  # the step to 0 is refined down to this part of its level
TAIL_PIECES = 8
RICHARDSON = 15  # halving a step of RK4 leaves 1/16 of the error: the difference of the two is 15 times the finer's


class Flow:
    """The exact flow of one batch under its conditions: carries unscaled states (B, *) from level to level by RK4."""

    def __init__(self, denoiser: Denoiser, conditions: dict[str, Any]) -> None:
        self.denoiser, self.conditions = denoiser, conditions

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; sigma), in the dtype of x."""
        return self.denoiser(x, torch.tensor(sigma, dtype=torch.float64), **self.conditions).to(x.dtype)

    def slope(self, x: Tensor, sigma: float) -> Tensor:
        """The derivative (x - D) / sigma of the path by sigma."""
        return (x - self.denoise(x, sigma)) / sigma

    def step(self, x: Tensor, a: float, b: float, k1: Tensor | None = None) -> Tensor:
        """One step of RK4 from level a to b > 0; k1 is the slope at a, where it is known."""
        h = b - a
        k1 = self.slope(x, a) if k1 is None else k1
        k2 = self.slope(x + h / 2 * k1, a + h / 2)
        k3 = self.slope(x + h / 2 * k2, a + h / 2)
        k4 = self.slope(x + h * k3, b)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def carry(self, x: Tensor, a: float, b: float, pieces: int, last: float | None = None) -> Tensor:
        """The state at level b given that at a, in pieces of equal ratio; 4 evaluations each.

        The pieces of a way to 0 end at the level `last` (a / 64 when None); from there and from the level twice as
        high, a cubic in sigma leads to 0. It is exact where the path is a line, as it is near data in points, or
        a parabola, as it is for a smooth density.
        """
        if b > 0:
            return self._pieces(x, a, b, pieces)
        end = self._end(a, b, last)
        if 2 * end >= a:
            return self.denoiser.finish(self.denoise(x, a), **self.conditions)
        x_2 = self._pieces(x, a, 2 * end, pieces)
        x_1 = self._pieces(x_2, 2 * end, end, math.ceil(pieces / math.log2(a / end)))
        D_1, D_2 = self.denoise(x_1, end), self.denoise(x_2, 2 * end)
        x_0 = -4 * x_1 + 5 * x_2 - 4 * (x_1 - D_1) - (x_2 - D_2)  # Hermite's cubic through x and (x - D) / sigma
        return self.denoiser.finish(x_0, **self.conditions)

    def _pieces(self, x: Tensor, a: float, b: float, pieces: int) -> Tensor:
        inner = [a * (b / a) ** (k / pieces) for k in range(1, pieces)]
        for high, low in pairwise([a, *inner, b]):
            x = self.step(x, high, low)
        return x

    def _end(self, a: float, b: float, last: float | None) -> float:
        """The level at which the pieces from a to b end."""
        return b if b > 0 else min(max(a * TAIL if last is None else last, self.denoiser.sigma_min), a)

    def refined(
        self,
        x: Tensor,
        a: float,
        b: float,
        wanted: Callable[[Tensor], float],
        *,
        pieces: int = 2,
        most: int = 512,
        last: float | None = None,
    ) -> tuple[Tensor, float]:
        """The state at level b, and its RMS error as far as halving the steps tells.

        The number of pieces doubles until that error is at most wanted(x_b), or does not fall any more because
        rounding (or a denoiser with discrete levels) is all that is left, or until there are `most`. At first no
        piece more than halves the level: of longer ones the difference of two solutions says little.
        """
        pieces = max(pieces, math.ceil(math.log2(a / self._end(a, b, last))))
        fine, error = self.carry(x, a, b, pieces, last), math.inf
        while True:
            pieces, coarse, before = 2 * pieces, fine, error
            fine = self.carry(x, a, b, pieces, last)
            error = rms(fine - coarse) / RICHARDSON
            if error <= wanted(fine) or error > before / 2 or pieces >= most:
                return fine, error


def rms(x: Tensor) -> float:
    """The root mean square over samples and dimensions."""
    return float(x.double().square().mean().sqrt())


@dataclass(frozen=True)
class ExactPath:
    """Solutions at L levels above 0, decreasing: x (L + 1, B, *) unscaled, the last at 0, D (L, B, *) along the way.

    error: the RMS error of x at 0, estimated by leaving out every second level. flow: the denoiser under the
    conditions of these samples.
    """

    sigmas: Tensor
    x: Tensor
    denoised: Tensor
    error: float
    flow: Flow


def exact_path(
    denoiser: Model,
    sigmas: Tensor,
    *,
    seeds: Sequence[int] | None = None,
    latents: Tensor | None = None,
    shape: Sequence[int] | None = None,
    labels: Labels = None,
    progress: bool = False,
    **conditions: Any,
) -> ExactPath:
    """The paths of some seeds by one step of RK4 between neighbouring levels, and 8 below the last.

    6 L + 60 evaluations, a third of them for the estimate of the error. Latents, labels and conditions as in
    `sample`, whose latent times sigmas[0] is where a path begins. Levels are taken as they are, not rounded to a
    denoiser's own.
    """
    denoiser = as_denoiser(denoiser)
    levels = sigmas.tolist()
    falling = sigmas.ndim == 1 and len(levels) >= 2 and all(a > b > 0 for a, b in pairwise(levels))
    require(falling, f"sigmas: got {levels}; expected at least two levels above 0, strictly decreasing")
    request = Request(denoiser, seeds, latents, shape, labels, conditions)
    with torch.no_grad(), evaluation_mode(denoiser), bar("solving the path", progress) as report:
        run, x, _ = request.start(denoiser, Sampler(), slice(0, request.n), sigmas, torch.float64)
        flow = Flow(denoiser, run.conditions)
        start, states, answers = x, [x], []
        for i, a in enumerate(levels):
            answers.append(flow.denoise(x, a))
            slope = (x - answers[-1]) / a
            x = flow.step(x, a, levels[i + 1], slope) if i + 1 < len(levels) else flow.carry(x, a, 0.0, TAIL_PIECES)
            states.append(x)
            report(i + 1, len(levels))
        error = rms(x - _every_second(flow, start, levels)) / RICHARDSON
    return ExactPath(sigmas, torch.stack(states), torch.stack(answers), error, flow)


def _every_second(flow: Flow, x: Tensor, levels: list[float]) -> Tensor:
    """The end of the path with half of the steps."""
    for a, b in pairwise([*levels[:-1:2], levels[-1]]):
        x = flow.step(x, a, b)
    return flow.carry(x, levels[-1], 0.0, TAIL_PIECES // 2)


def geometric_levels(denoiser: Denoiser, sigma_min: float, sigma_max: float, n: int) -> Tensor:
    """The n levels of equal ratio in a range, narrowed to what the denoiser supports, (n,) float64, decreasing.

    Raises ValueError for an empty range and for fewer than two levels.
    """
    low, high = max(sigma_min, denoiser.sigma_min), min(sigma_max, denoiser.sigma_max)
    require(n >= 2, f"levels: got {n}; expected at least 2")
    require(
        0 < low < high < math.inf,
        f"noise range: got sigma_min={low:g}, sigma_max={high:g} within what the denoiser supports; "
        "expected 0 < sigma_min < sigma_max < inf",
    )
    grid = torch.linspace(math.log(high), math.log(low), n, dtype=torch.float64).exp()
    grid[0], grid[-1] = high, low
    return grid
