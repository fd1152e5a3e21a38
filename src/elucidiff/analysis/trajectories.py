"""The solution trajectories of a one-dimensional model under several designs (EDM paper, Figure 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..component import require
from ..denoiser import Denoiser, as_denoiser, evaluation_mode
from ..design import Design
from ..sampler import Sampler, sampler_of
from ..solvers.clock import Clock, Moment
from .curvature import PAPER, scaled
from .exact_path import ExactPath, Flow, Model, exact_path, geometric_levels

GRID = 401  # numbers x of the background
MARGIN = 1.15  # of the background beyond the outermost path


@dataclass(frozen=True)
class Trajectories:
    """K paths of a design over its time, with tangents and the marginal density behind them.

    t (L + 1,), decreasing to 0; x (L + 1, K) the scaled states; slope (L, K) their derivatives by t at t[:-1].
    tangents (J,): the indices of the times at which to draw tangents, each `reach` of time long. grid_t (T,)
    increasing, grid_x (X,) and density (T, X): p(x; t) over its largest value at that time. sigma_max: the level
    at t[0].
    """

    name: str
    t: Tensor
    x: Tensor
    slope: Tensor
    tangents: Tensor
    reach: float
    grid_t: Tensor
    grid_x: Tensor
    density: Tensor
    sigma_max: float

    def to_dict(self) -> dict[str, Any]:
        """The paths as JSON data, without the background."""
        numbers = {k: v for k, v in self.__dict__.items() if k not in ("grid_t", "grid_x", "density")}
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in numbers.items()}


def trajectories(
    denoiser: Model,
    designs: Mapping[str, Sampler | Design] = PAPER,
    *,
    paths: int = 12,
    tangents: int = 5,
    sigma_max: float = 6.0,
    sigma_min: float = 0.002,
    levels: int = 400,
    label: int | None = None,
    **conditions: Any,
) -> tuple[Trajectories, ...]:
    """The paths from evenly spaced quantiles of the noise at sigma_max, as every design's time and scaling show them.

    For a denoiser of samples with one number. The tangents are where so many Euler steps of equal time would begin.
    The density comes from the denoiser alone, by integrating the score (D - x) / sigma^2 over x: any denoiser has
    one. label: the class, for a model with classes.

    Raises ValueError for a denoiser of other shapes.
    """
    denoiser = as_denoiser(denoiser)
    shape = denoiser.shape or (1,)
    require(math.prod(shape) == 1, f"trajectories: got a denoiser of shape {shape}; expected samples of one number")
    require(paths >= 1, f"paths: got {paths}; expected at least 1")
    require(tangents >= 1, f"tangents: got {tangents}; expected at least 1")
    sigmas = geometric_levels(denoiser, sigma_min, sigma_max, levels)
    quantiles = (torch.arange(paths, dtype=torch.float64) + 0.5) / paths
    latents = torch.special.ndtri(quantiles).reshape(-1, *shape)
    path = exact_path(denoiser, sigmas, latents=latents, labels=label, **conditions)
    if label is not None:
        conditions["labels"] = torch.full((GRID,), label)
    return tuple(_panel(denoiser, name, sampler_of(one), path, tangents, conditions) for name, one in designs.items())


def _panel(
    denoiser: Denoiser, name: str, sampler: Sampler, path: ExactPath, tangents: int, conditions: dict[str, Any]
) -> Trajectories:
    clock = Clock(sampler.schedule, sampler.scaling)
    moments = [clock.at(t) for t in clock.grid(path.sigmas)]
    x, slope = (values.flatten(1).cpu() for values in scaled(path, moments))
    t = torch.tensor([m.t for m in moments] + [0.0], dtype=torch.float64)
    x = torch.cat([x, path.x[-1:].flatten(1).cpu() * float(sampler.scaling.s(torch.zeros((), dtype=torch.float64)))])
    grid_t = torch.linspace(float(t[-2]), float(t[0]), 240, dtype=torch.float64)
    grid_x = torch.linspace(-1, 1, GRID, dtype=torch.float64) * float(x.abs().max()) * MARGIN
    grid = grid_x.to(path.x)
    columns = [_density(denoiser, moment, grid, conditions).cpu() for moment in clock.prefetch(grid_t)]
    at = [(t[:-1] - t[0] * (1 - k / tangents)).abs().argmin() for k in range(tangents)]
    return Trajectories(
        name=name,
        t=t,
        x=x,
        slope=slope,
        tangents=torch.stack(at),
        reach=float(t[0]) / tangents,
        grid_t=grid_t,
        grid_x=grid_x,
        density=torch.stack(columns),
        sigma_max=float(path.sigmas[0]),
    )


def _density(denoiser: Denoiser, moment: Moment, grid: Tensor, conditions: dict[str, Any]) -> Tensor:
    """p(x; t) on a grid of scaled x, over its largest value: the exponential of the integrated score."""
    x = (grid / moment.s).reshape(-1, *(denoiser.shape or (1,)))
    with torch.no_grad(), evaluation_mode(denoiser):
        D = Flow(denoiser, conditions).denoise(x, moment.sigma)
    score = ((D - x) / moment.sigma**2).flatten()
    log_p = torch.cumulative_trapezoid(score, x.flatten())
    log_p = torch.cat([log_p.new_zeros(1), log_p])
    return (log_p - log_p.max()).exp()
