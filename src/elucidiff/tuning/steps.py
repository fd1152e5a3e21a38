"""Time steps learned from a model: by dynamic programming, and by equal local errors.

Both look at a few finely solved paths of the model, the teacher's, and ask what one step from level i to level j would
do wrong. Two models of a step are tried, with and without the weights of `Paths.weights`, and the steps that serve
the sampler's own solver best on the same paths are returned: no model is best for all solvers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..component import require
from ..denoiser import Denoiser, as_denoiser
from ..formulation import EDM, Unscaled
from ..sampler import Sampler, sample
from ..solvers import RK4, Deterministic, Euler
from ..timesteps import EDM as EDMSteps
from ..timesteps import Fixed


@dataclass(frozen=True)
class Paths:
    """Finely solved paths of Eq. 4 for sigma(t) = t, s = 1: M levels above 0, x (M + 1, B, d), D (M, B, d).

    x[i] is the state at levels[i], x[M] the one at 0; denoised[i] = D(x[i]; levels[i]).
    """

    levels: Tensor
    x: Tensor
    denoised: Tensor

    def weights(self) -> Tensor:
        """Var x(0) / Var x(sigma) of every level, (M + 1,): how much of an error's square is left in the end.

        The paths contract as they fall to the data. Exact for Gaussian data; 1 for a single path.
        """
        spread = self.x.var(1).mean(1) if self.x.shape[1] > 1 else self.x.new_ones(len(self.x))
        return (spread[-1] / spread).nan_to_num(nan=1.0)  # 0 / 0 for paths that are all the same


def teacher_paths(
    denoiser: Denoiser | Callable[..., Tensor],
    sampler: Sampler,
    *,
    seeds: Sequence[int],
    candidates: int | Sequence[float] = 64,
    labels: Tensor | Sequence[int] | int | None = None,
    progress: bool = False,
    **conditions: Any,
) -> Paths:
    """The paths of some seeds, by RK4 on the candidate levels: 4 M - 3 evaluations, (2 M + 1) B d numbers of 8 bytes.

    candidates: the levels themselves, decreasing, or how many to place by rho = 7 over the sampler's
    range, narrowed and rounded to what the denoiser supports.
    """
    denoiser = as_denoiser(denoiser)
    if isinstance(candidates, int):
        asked = sampler.replace(steps=max(sampler.steps, 2)).sigmas(denoiser)
        high, low = float(asked[0]), float(asked[asked > 0][-1])
        levels = torch.unique_consecutive(denoiser.round_sigma(EDMSteps()(candidates, low, high)[:-1])).tolist()
    else:
        levels = [float(level) for level in candidates]
    rule = Fixed(tuple(levels))
    fine = Sampler(schedule=EDM(), scaling=Unscaled(), solver=RK4(), timesteps=rule, steps=len(rule.sigmas))
    run = sample(denoiser, fine, seeds=seeds, labels=labels, record=True, progress=progress, **conditions)
    kept = run.trajectory
    if kept is None or kept.x is None or kept.denoised is None:
        raise RuntimeError("the teacher recorded nothing")  # cannot happen: record=True
    return Paths(run.sigmas[:-1], kept.x.flatten(2), kept.denoised.flatten(2))


def jump_costs(paths: Paths, order: int, weighted: bool) -> Tensor:
    """The mean squared error of one step from the teacher's state at level i to that at level j, (M + 1, M + 1).

    order 1: D is held, x_j = D_i + sigma_j / sigma_i (x_i - D_i) (Euler, DDIM). order 2: the
    trapezoid of dx/dsigma = (x - D) / sigma with the teacher's own slope at j; the step to 0 is Euler's,
    as in every solver. Infinite where j <= i.
    """
    M, x, D = len(paths.levels), paths.x, paths.denoised
    sigma = torch.cat([paths.levels, paths.levels.new_zeros(1)]).to(x)
    d = (x[:M] - D) / sigma[:M, None, None]
    costs = torch.full((M + 1, M + 1), torch.inf, dtype=torch.float64)
    for i in range(M):
        slope = d[i].expand(M - i, *d[i].shape).clone()
        if order == 2:
            slope[:-1] = (slope[:-1] + d[i + 1 :]) / 2
        error = x[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * slope - x[i + 1 :]
        costs[i, i + 1 :] = (error**2).mean((1, 2)).cpu()
    return torch.where(costs.isinf(), costs, costs * paths.weights().cpu()) if weighted else costs


def cheapest_path(costs: Tensor, jumps: int) -> list[int]:
    """The indices of the path from the first to the last with exactly so many jumps whose costs sum to the least.

    Bellman: V_m(j) = min_i V_(m-1)(i) + cost(i, j). Raises ValueError for more jumps than there are places.
    """
    last = len(costs) - 1
    require(1 <= jumps <= last, f"steps: got {jumps} jumps; the candidate levels allow 1 to {last}")
    value, origins = costs[0], []
    for _ in range(jumps - 1):
        value, origin = (value[:, None] + costs).min(0)
        origins.append(origin)
    path = [last]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return [0, *reversed(path)]


def equal_error_levels(costs: Tensor, levels: Tensor, order: int, n: int, to_zero: bool) -> list[float]:
    """Levels, n of them, between which every step makes the same error; from the first candidate down.

    With `to_zero` the last level is where the step to 0 makes that error too; else, or where none does, it is the
    last candidate. A step of length h makes an error kappa h^(order + 1): its root of that order is nearly linear
    in h, and is interpolated between the candidates. The common error is found by bisection: steps that
    are too short do not reach the end, steps that are too long reach it too early.
    """
    M, u = len(levels), levels.log().numpy()
    roots = costs.nan_to_num(posinf=0.0).pow(0.5 / (order + 1)).numpy()
    roots[:M, :M] = np.maximum(roots[:M, :M], 1e-9 * np.subtract.outer(u, u))  # exact steps still take their time
    low, high = math.log(1e-12), math.log(2 * roots.max())
    for _ in range(50):
        middle = (low + high) / 2
        place = _walk(roots, n, math.exp(middle))[-1]
        too_short = place < M - 1 and not (to_zero and _at(roots[:, M], place) <= math.exp(middle))
        low, high = (middle, high) if too_short else (low, middle)
    found = np.exp([_at(u, place) for place in _walk(roots, n, math.exp(low))])
    found[0] = levels[0]
    if not to_zero:
        found[-1] = levels[-1]
    return [float(level) for level in found]


def _walk(roots: np.ndarray[Any, Any], n: int, root: float) -> list[float]:
    """The places of n levels, as fractions of the candidates' indices, when every step makes the error root."""
    last = len(roots) - 2
    places = [0.0]
    for _ in range(n - 1):
        place = places[-1]
        i = min(int(place), last - 1)
        row = (1 - (place - i)) * roots[i] + (place - i) * roots[i + 1]
        beyond = np.flatnonzero(row[i + 1 : last + 1] >= root)
        if not len(beyond):
            return [*places, *[float(last)] * (n - len(places))]
        j = i + 1 + int(beyond[0])
        before, error = (j - 1, float(row[j - 1])) if j > i + 1 else (place, 0.0)
        places.append(before + (j - before) * (root - error) / (float(row[j]) - error))
    return places


def _at(values: np.ndarray[Any, Any], place: float) -> float:
    """The value at a fraction of the indices."""
    i = min(int(place), len(values) - 2)
    return float(values[i] + (place - i) * (values[i + 1] - values[i]))


def steps_by_dynamic_programming(
    denoiser: Denoiser | Callable[..., Tensor],
    sampler: Sampler,
    n: int,
    *,
    seeds: Sequence[int],
    candidates: int | Sequence[float] = 64,
    labels: Tensor | Sequence[int] | int | None = None,
    progress: bool = False,
    **conditions: Any,
) -> Sampler:
    """The sampler with those n of the candidate levels that have the least sum of squared local errors.

    For a model at hand: save the sampler (`.save("steps.json")`) and use it ever after. Costs 4 x `candidates`
    evaluations for each seed and a few runs of n steps; 8 to 32 seeds are enough. The
    levels end where a direct step to 0 is best, well above sigma_min for most data.

    Args:
        denoiser: a Denoiser, or any function (x, sigma, **conditions) -> D.
        sampler: whose solver and range are used; its time steps are replaced.
        n: how many levels above 0.
        seeds: of the paths to learn from; judge the result on others.
        candidates: how many levels to choose from, or the levels.
        labels: as for `ed.sample`.
        progress: show a progress bar.
        conditions: passed to the denoiser; `shape=` where it does not know the shape of a sample.

    Raises:
        ValueError: for an n that the candidates do not allow, and for what `ed.sample` refuses.
    """
    request = {"seeds": seeds, "labels": labels, **conditions}
    paths = teacher_paths(denoiser, sampler, candidates=candidates, progress=progress, **request)
    end = len(paths.levels) + 1 if sampler.to_zero else len(paths.levels)
    plans = [
        [float(paths.levels[i]) for i in cheapest_path(costs[:end, :end], n if sampler.to_zero else n - 1)[:n]]
        for _, costs in _all_costs(paths)
    ]
    return _best(denoiser, sampler, plans, paths, request)


def steps_by_equal_error(
    denoiser: Denoiser | Callable[..., Tensor],
    sampler: Sampler,
    n: int,
    *,
    seeds: Sequence[int],
    candidates: int | Sequence[float] = 64,
    labels: Tensor | Sequence[int] | int | None = None,
    progress: bool = False,
    **conditions: Any,
) -> Sampler:
    """The sampler with n levels between which every step makes the same local error.

    Arguments, costs and errors as for `steps_by_dynamic_programming`. The levels lie between the candidates, so a
    few candidates suffice.
    """
    require(n >= 1, f"steps: got {n}; expected at least 1")
    request = {"seeds": seeds, "labels": labels, **conditions}
    paths = teacher_paths(denoiser, sampler, candidates=candidates, progress=progress, **request)
    plans = [equal_error_levels(costs, paths.levels, order, n, sampler.to_zero) for order, costs in _all_costs(paths)]
    return _best(denoiser, sampler, plans, paths, request)


def _all_costs(paths: Paths) -> list[tuple[int, Tensor]]:
    return [(order, jump_costs(paths, order, weighted)) for order in (1, 2) for weighted in (True, False)]


def _best(
    denoiser: Denoiser | Callable[..., Tensor],
    sampler: Sampler,
    plans: list[list[float]],
    paths: Paths,
    request: dict[str, Any],
) -> Sampler:
    """The sampler with the plan whose samples come nearest to the ends of the paths, the first of equals."""
    ends = paths.x[-1 if sampler.to_zero else -2]
    # noise would hide what the steps do, and an adaptive solver chooses its own
    solver = Euler() if sampler.solver.draws or sampler.solver.adaptive else sampler.solver
    made = [
        sampler.replace(timesteps=Fixed(tuple(plan)), steps=len(plan), sigma_min=None, sigma_max=None) for plan in plans
    ]
    errors = []
    for one in made:
        tried = one.replace(solver=solver, stochasticity=Deterministic())
        run = sample(denoiser, tried, **request)
        x = run.x / sampler.scaling.s(run.sigmas[-1])
        errors.append(float((x.flatten(1) - ends).square().mean()))
    return made[min(range(len(made)), key=errors.__getitem__)]
