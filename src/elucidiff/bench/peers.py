"""Peers where installed: diffusers' schedulers on the same denoisers, with the same starting noise and counting."""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..timesteps import EDM, LogSNR, TimeSteps
from .problems import SIGMA_MAX, SIGMA_MIN, Problem
from .solvers import Row, errors, row

if TYPE_CHECKING:
    from ..denoiser import Denoiser

SCHEDULERS: dict[str, dict[str, Any]] = {
    "DPMSolverMultistep": {"solver_order": 2, "prediction_type": "sample", "lower_order_final": True},
    "UniPCMultistep": {"solver_order": 3, "prediction_type": "sample", "lower_order_final": True},
    "DEISMultistep": {"solver_order": 3, "prediction_type": "sample", "lower_order_final": True},
    "HeunDiscrete": {"prediction_type": "epsilon"},
}
STEPS: dict[str, TimeSteps] = {"rho 7": EDM(), "logsnr": LogSNR()}


def measure_installed(problems: Iterable[Problem], budgets: Sequence[int]) -> tuple[list[Row], list[str]]:
    """Rows of the peers that can be imported, and a note on those that cannot."""
    if importlib.util.find_spec("diffusers") is None:
        return [], ["diffusers is not installed here: its schedulers were not run."]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = importlib.import_module("diffusers")

        rows = [
            found
            for problem in problems
            for name, options in SCHEDULERS.items()
            for steps in STEPS
            for nfe in budgets
            if (found := _measure(diffusers, problem, name, options, steps, nfe)) is not None
        ]
    return rows, [f"diffusers {diffusers.__version__} ran beside ours; its rows are named by its classes."]


def _measure(diffusers: Any, problem: Problem, name: str, options: dict[str, Any], steps: str, nfe: int) -> Row | None:
    heun = name == "HeunDiscrete"
    if heun and nfe % 2 == 0:
        return None
    to_zero = name != "DEISMultistep"  # whose formulas take the logarithm of the last level
    levels = STEPS[steps]((nfe + 1) // 2 if heun else nfe + (not to_zero), SIGMA_MIN, SIGMA_MAX)
    levels = levels if to_zero else levels[:-1]
    scheduler = getattr(diffusers, f"{name}Scheduler")(num_train_timesteps=1000, **options)
    counted = _Counted(problem.denoiser)
    started = time.perf_counter()
    x = (_heun if heun else _multistep)(scheduler, counted, problem.latents(), levels)
    seconds = time.perf_counter() - started
    if counted.calls != nfe:
        raise ValueError(f"diffusers {name}: {counted.calls} evaluations, asked for {nfe}")
    if not to_zero:
        x = x * (1 + SIGMA_MIN**2) ** 0.5
    label = f"diffusers {name}, {steps}, {'0.002 to 0' if to_zero else 'to 0.002'}"
    return row(problem.name, nfe, label, "T0", errors(x, problem.reference(to_zero=to_zero)), seconds)


class _Counted:
    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.denoiser(x, sigma)


Denoise = Callable[[Tensor, Tensor], Tensor]


def _multistep(scheduler: Any, denoise: Denoise, latents: Tensor, levels: Tensor) -> Tensor:
    """The schedulers in VP coordinates, x / sqrt(1 + sigma^2), with their levels replaced by ours."""
    n = len(levels) - 1
    scheduler.set_timesteps(n)
    scheduler.sigmas = levels
    scheduler.timesteps = torch.arange(n, 0, -1)  # distinct numbers: the step is found by them
    x = latents * SIGMA_MAX / (1 + SIGMA_MAX**2) ** 0.5
    for t, sigma in zip(scheduler.timesteps, levels[:-1], strict=True):
        scale = (1 + sigma**2).sqrt()
        x = scheduler.step(denoise(x * scale, sigma), t, x).prev_sample
    return x


def _heun(scheduler: Any, denoise: Denoise, latents: Tensor, levels: Tensor) -> Tensor:
    """HeunDiscreteScheduler works with sigma itself; each level but the first and the last stands twice."""
    n = len(levels) - 1
    scheduler.set_timesteps(n)
    scheduler.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    scheduler.timesteps = torch.arange(2 * n - 1, 0, -1).to(torch.float64)
    x = latents * SIGMA_MAX
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        x = scheduler.step((x - denoise(x, sigma)) / sigma, t, x).prev_sample
    return x
