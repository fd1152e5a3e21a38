"""Which sampler for a model and a number of evaluations: candidates ranked by their distance to the exact samples.

Ranked on some seeds, judged on others: the error that is reported had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import solvers, timesteps
from ..component import require
from ..denoiser import Denoiser, as_denoiser
from ..progress import bar
from ..sampler import Sampler, sample
from ..tuning import steps_by_equal_error
from .budget import at_budget
from .exact_path import ExactPath, Labels, Model, exact_path, geometric_levels, rms

BUDGETS = (5, 8, 12, 35)
LEARNING, FRESH = range(1000, 1032), range(2000, 2032)
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
LEVELS = 64
LASTS = (0.1, 0.05, 0.02, SIGMA_MIN)
"""Where the step to 0 may begin: with few steps the fine detail below is better left to D."""
FIRST_ROUND, SECOND_ROUND = 8, 16  # seeds that sort out the hopeless; candidates that then see all seeds
MOST_COORDINATES = 4096  # of data whose variance is given to the solver coordinate by coordinate


@dataclass(frozen=True)
class Recommendation:
    """The sampler for a budget and what speaks for it. Errors are RMS distances to the exact samples, in data units.

    error: on seeds that had no part in the choice; standard_error: of it. heun, heun_nfe: EDM's sampler at the same
    budget, or what comes nearest below. second, second_error: the best candidate with another solver, same fresh seeds.
    scale: the standard deviation of the samples.
    """

    nfe: int
    name: str
    sampler: Sampler
    error: float
    standard_error: float
    heun: float
    heun_nfe: int
    second: str
    second_error: float
    scale: float

    @property
    def reason(self) -> str:
        """The choice in one sentence."""
        gain = self.heun / self.error if self.error > 0 else float("inf")
        return (
            f"{self.error:.2g} from the exact samples ({self.error / self.scale:.1%} of their spread); EDM's Heun with "
            f"{self.heun_nfe} evaluations {self.heun:.2g}, {gain:.1f} times as much; next solver {self.second}, "
            f"{self.second_error:.2g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The recommendation as JSON data."""
        return {**self.__dict__, "sampler": self.sampler.to_dict(), "reason": self.reason}


Named = tuple[str, Sampler]
Asked = Callable[[Sequence[int]], Mapping[str, Any]]


def recommend(
    denoiser: Model,
    budgets: Sequence[int] = BUDGETS,
    *,
    learning: Sequence[int] = LEARNING,
    fresh: Sequence[int] = FRESH,
    shape: Sequence[int] | None = None,
    labels: Labels = None,
    asked: Asked = lambda seeds: {},
    progress: bool = False,
    **conditions: Any,
) -> list[Recommendation]:
    """The best of about 100 fixed samplers for each budget of network evaluations.

    Candidates: the deterministic solvers that are strong with few evaluations, on EDM, logSNR and equal-error time
    steps, with several last levels; among them `gaussian`, which knows mean and variance of the data, here measured on
    exact samples of the `learning` seeds. All start from sigma = 80, or the highest level of the model. Ranked by the
    RMS distance to exact samples of the `learning` seeds, the hopeless after 8 of them; judged on the `fresh` seeds.
    Costs about 40 runs of all seeds at each budget, 450 evaluations for the exact samples, and 400 for the equal-error
    steps.

    asked: labels and conditions of the samples of some seeds, for a model where they differ from sample to sample.

    Raises ValueError for budgets below 1 and seeds that serve both purposes.
    """
    denoiser = as_denoiser(denoiser)
    require(len(budgets) > 0 and min(budgets) >= 1, f"budgets: got {list(budgets)}; expected numbers of at least 1")
    shared = set(learning) & set(fresh)
    require(not shared, f"seeds: {sorted(shared)[:3]} both choose and judge; expected two sets without a common seed")

    def request(seeds: Sequence[int]) -> dict[str, Any]:
        return {"shape": shape, "labels": labels, **conditions, **asked(seeds)}

    levels = geometric_levels(denoiser, SIGMA_MIN, SIGMA_MAX, LEVELS)
    paths = {
        name: exact_path(denoiser, levels, seeds=seeds, progress=progress, **request(seeds))
        for name, seeds in (("learning", learning), ("fresh", fresh))
    }
    found = []
    for nfe in budgets:
        ranked = _ranked(denoiser, nfe, paths["learning"], learning, request, progress)
        found.append(_judged(denoiser, nfe, ranked, paths["fresh"].x[-1], fresh, request))
    return found


def candidates(denoiser: Denoiser, path: ExactPath, nfe: int, shape: Sequence[int]) -> Iterator[Named]:
    """The samplers of at most nfe evaluations on plain time steps, by name."""
    rules: dict[str, timesteps.TimeSteps] = {
        "EDM steps": timesteps.EDM(),
        "rho 10": timesteps.EDM(rho=10.0),
        "logSNR": timesteps.LogSNR(),
    }
    for solver_name, solver in _solvers(path).items():
        for rule_name, rule in rules.items():
            for last in LASTS:
                if not denoiser.sigma_min <= last < denoiser.sigma_max:
                    continue
                sampler = Sampler(solver=solver, timesteps=rule, sigma_min=last, sigma_max=float(path.sigmas[0]))
                made = at_budget(sampler, nfe, shape, denoiser)
                if made is not None:
                    yield f"{solver_name}, {rule_name} from {path.sigmas[0]:.4g} to {last:g}", made[0]


def _solvers(path: ExactPath) -> dict[str, solvers.Solver]:
    """The solvers that are strong with few evaluations, with the data's mean and variance where they use them."""
    ends = path.x[-1].flatten(1)
    mean, variance = ends.mean(0), ends.var(0, correction=1)
    sigma_data = max(float(variance.mean().sqrt()), 1e-6)
    knowledge: dict[str, Any] = {"sigma_data": sigma_data}
    if mean.numel() <= MOST_COORDINATES and len(ends) >= 8:
        shrunk = 0.9 * variance + 0.1 * sigma_data**2  # a variance of a few samples is uncertain, and never 0
        knowledge |= {"mean": tuple(mean.tolist()), "spectrum": tuple(shrunk.tolist())}
    return {
        "Heun": solvers.Heun(),
        "DPM-Solver++(2M)": solvers.DPMpp2M(),
        "UniPC-3": solvers.UniPC(order=3),
        "iPNDM-4": solvers.IPNDM(order=4),
        "DEIS-3": solvers.DEIS(order=3),
        "Gaussian-exact": solvers.GaussianExponential(order=3, corrector=True, **knowledge),
    }


def _ranked(
    denoiser: Denoiser, nfe: int, path: ExactPath, seeds: Sequence[int], request: Asked, progress: bool
) -> list[Named]:
    """All candidates of a budget, the nearest to the exact samples first; the best few also on equal-error steps."""
    shape = tuple(path.x.shape[2:])
    plain = list(candidates(denoiser, path, nfe, shape))
    require(bool(plain), f"budget {nfe}: no sampler makes so few evaluations in this model's range of noise levels")
    few, kept = list(seeds)[:FIRST_ROUND], path.x[-1]
    with bar(f"samplers with {nfe} evaluations", progress) as report:
        rough = []
        for i, (name, sampler) in enumerate(plain):
            rough.append((_error(denoiser, sampler, kept[: len(few)], few, request)[0], name, sampler))
            report(i + 1, len(plain))
        rough.sort(key=lambda row: row[0])
        scored = [(_error(denoiser, s, kept, seeds, request)[0], name, s) for _, name, s in rough[:SECOND_ROUND]]
    scored.sort(key=lambda row: row[0])
    for _, name, sampler in _best_of_solvers(scored)[:3]:
        fitted = _equal_error(denoiser, sampler, seeds, request)
        if fitted is not None:
            label = f"{name.split(',')[0]}, equal-error steps from {path.sigmas[0]:.4g}"
            scored.append((_error(denoiser, fitted, path.x[-1], seeds, request)[0], label, fitted))
    return [(name, sampler) for _, name, sampler in sorted(scored, key=lambda row: row[0])]


def _best_of_solvers(scored: list[tuple[float, str, Sampler]]) -> list[tuple[float, str, Sampler]]:
    """The best row of every solver, in order."""
    best: dict[str, tuple[float, str, Sampler]] = {}
    for row in scored:
        best.setdefault(row[2].solver.kind, row)
    return list(best.values())


def _equal_error(denoiser: Denoiser, sampler: Sampler, seeds: Sequence[int], request: Asked) -> Sampler | None:
    """The sampler on as many steps of equal local error; None where the model's own levels do not allow it."""
    wide = sampler.replace(sigma_min=max(SIGMA_MIN, denoiser.sigma_min))
    try:
        few = list(seeds)[:16]
        return steps_by_equal_error(denoiser, wide, sampler.steps, seeds=few, candidates=32, **request(few))
    except ValueError:
        return None


def _error(
    denoiser: Denoiser, sampler: Sampler, exact: Tensor, seeds: Sequence[int], request: Asked
) -> tuple[float, float]:
    """The RMS distance to exact samples (B, *), infinite where one is not finite, and its standard error."""
    each = (sample(denoiser, sampler, seeds=seeds, **request(seeds)).x - exact).square().flatten(1).mean(1)
    error = rms(each.sqrt())
    if not torch.isfinite(each).all():
        return float("inf"), float("inf")
    return error, float(each.std() / len(each) ** 0.5) / (2 * error) if error > 0 and len(each) > 1 else 0.0


def _judged(
    denoiser: Denoiser,
    nfe: int,
    ranked: list[Named],
    exact: Tensor,
    seeds: Sequence[int],
    request: Asked,
) -> Recommendation:
    """The first of the ranked, the first with another solver, and EDM's Heun, on fresh seeds."""
    name, sampler = ranked[0]
    second_name, second = next((r for r in ranked if r[1].solver.kind != sampler.solver.kind), ranked[-1])
    heun, heun_nfe = at_budget(Sampler(sigma_max=sampler.sigma_max), nfe, tuple(exact.shape[1:]), denoiser) or (
        Sampler(steps=1, sigma_max=sampler.sigma_max),
        1,
    )
    error, spread = _error(denoiser, sampler, exact, seeds, request)
    return Recommendation(
        nfe=nfe,
        name=name,
        sampler=sampler,
        error=error,
        standard_error=spread,
        heun=_error(denoiser, heun, exact, seeds, request)[0],
        heun_nfe=heun_nfe,
        second=second_name,
        second_error=_error(denoiser, second, exact, seeds, request)[0],
        scale=float(exact.std()),
    )
