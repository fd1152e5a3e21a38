"""How exact a sampler is for a number of network evaluations, beside the best that peers reach."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..analysis.budget import evaluations as dry_run
from ..sampler import Sampler, sample
from .problems import Problem

BUDGETS = (5, 6, 8, 10, 12, 16, 20, 36)
Q_BUDGETS = (5, 6, 8, 10)

# RMSE of the best fixed setting of about 100, per problem and NFE: UniPC, DPM-Solver++, iPNDM, DEIS, LMS, Heun, DPM-2
# on rho 7, logSNR, VP, quadratic VP, cosine, published and recomputed optimised steps. Source: the specification of
# this benchmark (spec/benchmarks.md, part A), where the four problems were made.
PEERS: dict[str, dict[int, float]] = {
    problem: dict(zip((4, 5, 6, 8, 10, 12, 16, 20, 36), values, strict=True))
    for problem, values in {
        "gmm_cifar_diagonal": (0.0723, 0.0366, 0.0234, 0.0173, 0.0120, 0.0088, 0.0044, 0.0020, 0.00074),
        "gmm_cifar_full": (0.2014, 0.1206, 0.0750, 0.0461, 0.0242, 0.0194, 0.0085, 0.0045, 0.00078),
        "digits_mlp": (0.0956, 0.0703, 0.0523, 0.0215, 0.0122, 0.0087, 0.0054, 0.0038, 0.00075),
        "gmm_2d": (0.0962, 0.0832, 0.0675, 0.0526, 0.0411, 0.0313, 0.0171, 0.0114, 0.0018),
    }.items()
}
HEUN = {"gmm_cifar_diagonal": 0.0173, "gmm_cifar_full": 0.0407, "digits_mlp": 0.0137, "gmm_2d": 0.0478}
"""EDM's Heun sampler, rho 7, 35 evaluations: from the same source."""


class Errors(NamedTuple):
    """The distance to exact samples: RMSE over all coordinates, the same over the RMS of the samples, and per sample.

    median and p90 (the 90th percentile) are of the samples' own RMSE: where paths bifurcate, a few
    samples that take the wrong branch dominate the mean.
    """

    rmse: float
    relative: float
    median: float
    p90: float


def errors(x: Tensor, exact: Tensor) -> Errors:
    """The errors of samples x (B, *) against exact ones."""
    each = (x - exact).square().flatten(1).mean(1)
    rmse = float(each.mean().sqrt())
    return Errors(
        rmse, rmse / float(exact.square().mean().sqrt()), float(each.sqrt().median()), float(each.sqrt().quantile(0.9))
    )


@dataclass(frozen=True)
class Setting:
    """A rule that gives the sampler for a problem and a number of steps, and what it may know.

    track: "T0" without data, "T1" from statistics of the data or at most 64 teacher paths.
    `sampler(problem, steps)`; an evaluation budget is met by trying numbers of steps.
    """

    name: str
    track: str
    sampler: Callable[[Problem, int], Sampler]

    def renamed(self, name: str, track: str) -> Setting:
        """The same setting under another name."""
        return Setting(name, track, self.sampler)

    def at(self, problem: Problem, nfe: int) -> Sampler | None:
        """The sampler that makes exactly so many evaluations; None when no number of steps does."""
        for steps in (nfe, nfe + 1, *range(nfe - 1, 0, -1)):  # one evaluation a step, to 0 or not, is most frequent
            try:
                sampler = self.sampler(problem, steps)
            except ValueError:  # e.g. one level without a step to 0
                continue
            if evaluations(sampler, problem.at_zero.shape[1]) == nfe:
                return sampler
        return None


@functools.lru_cache(maxsize=4096)
def evaluations(sampler: Sampler, d: int) -> int:
    """How often a sampler calls the denoiser, counted by a dry run in d dimensions; remembered."""
    return dry_run(sampler, (d,))


@dataclass(frozen=True)
class Row:
    """One measurement: a setting on a problem with a budget. ratio: RMSE over the best peer's, where that is known."""

    problem: str
    nfe: int
    name: str
    track: str
    rmse: float
    relative: float
    median: float
    p90: float
    ratio: float | None
    seconds: float
    sampler: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON data."""
        return asdict(self)


Exact = Callable[[Problem, bool], tuple[Tensor, Tensor]]


def stored(problem: Problem, to_zero: bool) -> tuple[Tensor, Tensor]:
    """Latents and exact samples of the test split, as stored."""
    return problem.latents(), problem.reference(to_zero=to_zero)


def measure(problem: Problem, setting: Setting, nfe: int, exact: Exact = stored) -> Row | None:
    """Run a setting at a budget and compare its samples; None where it cannot meet the budget.

    Samplers that end with a step to 0 are compared with the exact samples at 0, others with those at
    sigma_min. Raises ValueError when the run itself counts another number of evaluations.
    """
    sampler = setting.at(problem, nfe)
    if sampler is None:
        return None
    latents, ends = exact(problem, sampler.to_zero)
    started = time.perf_counter()
    result = sample(problem.denoiser, sampler, latents=latents)
    seconds = time.perf_counter() - started
    if result.nfe != nfe:
        raise ValueError(f"{setting.name}: {result.nfe} evaluations, asked for {nfe}")
    return row(problem.name, nfe, setting.name, setting.track, errors(result.x, ends), seconds)


def row(problem: str, nfe: int, name: str, track: str, found: Errors, seconds: float) -> Row:
    """A measurement with its ratio to the best peer. 35 evaluations are compared with the peers' 36."""
    peer = PEERS.get(problem, {}).get(36 if nfe == 35 else nfe)
    return Row(problem, nfe, name, track, *found, None if peer is None else found.rmse / peer, seconds)


def measure_all(
    problems: Iterable[Problem],
    settings: Sequence[Setting],
    budgets: Sequence[int] = BUDGETS,
    exact: Exact = stored,
    report: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """All settings on all problems with all budgets that they can meet."""
    todo = [(p, s, nfe) for p in problems for s in settings for nfe in budgets]
    rows = []
    for i, (problem, setting, nfe) in enumerate(todo):
        rows.append(measure(problem, setting, nfe, exact))
        if report:
            report(i + 1, len(todo))
    return [r for r in rows if r is not None]


@dataclass(frozen=True)
class Score:
    """Q of one setting: the geometric mean of its ratios to the best peers; the worst single ratio, and where."""

    name: str
    track: str
    Q: float
    worst: float
    worst_at: tuple[str, int]
    by_problem: Mapping[str, float]


def geometric_mean(values: Iterable[float]) -> float:
    """Exp of the mean logarithm."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def score(rows: Iterable[Row], budgets: Sequence[int] = Q_BUDGETS, problems: Iterable[str] = PEERS) -> Score | None:
    """Q of one setting's rows over all problems and budgets; None where a measurement is missing."""
    problems = list(problems)
    found = {(r.problem, r.nfe): r for r in rows}
    wanted = [(p, n) for p in problems for n in budgets]
    if not all(key in found and found[key].ratio is not None for key in wanted):
        return None
    ratios = {key: float(found[key].ratio or 0) for key in wanted}
    worst_at = max(ratios, key=lambda key: ratios[key])
    first = found[wanted[0]]
    by_problem = {p: geometric_mean(ratios[p, n] for n in budgets) for p in problems}
    return Score(first.name, first.track, geometric_mean(ratios.values()), ratios[worst_at], worst_at, by_problem)


def scores(rows: Iterable[Row]) -> list[Score]:
    """Q of every setting that was measured everywhere, the best first."""
    by_name: dict[str, list[Row]] = {}
    for r in rows:
        by_name.setdefault(r.name, []).append(r)
    found = [s for rows_of in by_name.values() if (s := score(rows_of)) is not None]
    return sorted(found, key=lambda s: s.Q)


def best(rows: Iterable[Row], problem: str, nfe: int) -> Row | None:
    """The row of the smallest RMSE on a problem with a budget."""
    return min((r for r in rows if (r.problem, r.nfe) == (problem, nfe)), key=lambda r: r.rmse, default=None)
