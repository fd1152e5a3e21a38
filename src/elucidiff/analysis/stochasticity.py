"""The paper's search for the stochasticity of Algorithm 2: each parameter alone, then all together, on honest seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..component import require
from ..data import Dataset
from ..denoiser import Denoiser
from ..progress import Report, silent
from ..sampler import Sampler, sampler_of
from ..solvers import Churn, Deterministic
from .budget import at_budget, has_own_cost
from .churn_grid import NAMES, OFF, ChurnGrid, alone, churn_name, churn_samplers, combined, jointly, with_churn
from .compare import HIGHER_IS_BETTER, Comparison, Spread, compare, own_sampler
from .scores import expanded

if TYPE_CHECKING:
    from ..design import Design

STAGES = ("deterministic", "S_churn alone", "+ S_min, S_max", "+ S_noise", "all")


@dataclass(frozen=True)
class Stage:
    """A row of the ablation: the best setting of its kind by the selection seeds, and its score on fresh ones.

    tried: how many settings it was the best of. gain: of the fresh score over the deterministic
    sampler's, repeat by repeat on the same seeds, positive when better.
    """

    name: str
    churn: Churn
    tried: int
    selected: float | None
    fresh: Spread
    gain: Spread

    @property
    def setting(self) -> str:
        """What differs from "off", as text."""
        return churn_name(self.churn)

    @property
    def exceeds_spread(self) -> bool | None:
        """Whether the mean gain is larger than its standard deviation over the repeats; None where that is unknown."""
        return None if self.gain.mean is None or self.gain.std is None else self.gain.mean > self.gain.std

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON data."""
        own = {"name": self.name, "setting": self.setting, "churn": self.churn.to_dict(), "tried": self.tried}
        measured = {"selected": self.selected, "fresh": self.fresh.to_dict(), "gain": self.gain.to_dict()}
        return own | measured | {"gain_exceeds_spread": self.exceeds_spread}


@dataclass(frozen=True)
class StochasticitySearch:
    """What `search_stochasticity` found for one model and sampler.

    curves: score over S_churn on the selection seeds, S_churn alone and with the other parameters
    found, as (S_churn, Spread). base: the deterministic sampler at its budget.
    """

    model: str
    sampler: str
    base: Sampler
    nfe: int
    metric: str
    stages: tuple[Stage, ...]
    curves: Mapping[str, tuple[tuple[float, Spread], ...]]
    real: float | None
    facts: Mapping[str, Any]

    @property
    def best(self) -> Sampler:
        """The sampler of the last stage, with all parameters; chosen on the selection seeds."""
        return with_churn(self.base, self.stages[-1].churn)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data."""
        curves = {
            name: [{"S_churn": churn, **spread.to_dict()} for churn, spread in curve]
            for name, curve in self.curves.items()
        }
        own = {"model": self.model, "sampler": self.sampler, "nfe": self.nfe, "metric": self.metric, "real": self.real}
        found = {"stages": [stage.to_dict() for stage in self.stages], "curves": curves, "best": self.best.to_dict()}
        return own | found | dict(self.facts)


def search_stochasticity(
    models: Mapping[str, Denoiser] | Denoiser,
    data: Dataset,
    samplers: Mapping[str, Sampler | Design | None],
    nfe: int = 35,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    num: int = 500,
    repeats: int = 3,
    metric: str = "fd",
    first_seed: int = 0,
    store: str | Path | None = None,
    progress: Report = silent,
    **options: Any,
) -> list[StochasticitySearch]:
    """The grid search of the EDM paper (Section 4, Table 5) for every model and sampler, at one budget.

    1. S_churn alone, with S_min, S_max and S_noise off.
    2. At the best S_churn: S_max, then S_min; and, separately, S_noise.
    3. All together: from the best of these, each parameter in turn, then every combination of each one's best
       value with the better of its two neighbours in the grid.

    Settings are chosen by their mean over `repeats` times `num` samples. The best of many noisy numbers is
    too good, so the ablation's scores come from as many samples of fresh seeds, which follow.

    grid: values by parameter name, in place of those of `ChurnGrid.for_steps`. options: of `compare`
    (heldout, batch_size, extractor). progress: as for `compare`, anew for every step of the search.
    Raises ValueError for samplers without a choice of steps.
    """
    require(expanded([metric]) == (metric,), f"metric: got {metric!r}, which is several; a search has one")
    models = {"model": models} if isinstance(models, Denoiser) else dict(models)
    found = []
    for (model_name, model), (name, choice) in product(models.items(), samplers.items()):
        sampler = own_sampler(model, model_name) if choice is None else sampler_of(choice)
        afforded = None if has_own_cost(sampler) else at_budget(sampler, nfe, data.shape, model)
        if afforded is None:
            raise ValueError(f"{name}: no number of steps fits {nfe} evaluations; expected a sampler whose steps vary")
        base = afforded[0].replace(stochasticity=Deterministic())
        values = ChurnGrid.for_steps(base.steps, **(grid or {}))
        common = {"num": num, "repeats": repeats, "metrics": [metric], "store": store, "progress": progress} | options
        run = functools.partial(_measured, {model_name: model}, data, base, nfe, common)
        search = _Search(values, metric, functools.partial(run, first_seed))
        stages = search.stages()
        fresh = run(first_seed + repeats * num, [stage.churn for stage in stages])
        rows = tuple(_with_fresh(stage, fresh, metric) for stage in stages)
        facts = {"grid": values.to_dict(), "selection_first_seed": first_seed} | dict(fresh.facts)
        curves, cost, real = search.curves, fresh.points[0].nfe, fresh.real[metric]
        found.append(StochasticitySearch(model_name, name, base, cost, metric, rows, curves, real, facts))
    return found


def _measured(
    models: Mapping[str, Denoiser],
    data: Dataset,
    base: Sampler,
    nfe: int,
    common: Mapping[str, Any],
    first_seed: int,
    settings: Sequence[Churn],
) -> Comparison:
    """The settings compared on the samples from `first_seed` on."""
    return compare(models, data, churn_samplers(base, settings), [nfe], first_seed=first_seed, **common)


class _Search:
    """The state of one search: every setting measured so far on the selection seeds."""

    def __init__(self, grid: ChurnGrid, metric: str, run: Callable[[list[Churn]], Comparison]) -> None:
        self.grid, self.metric, self.run = grid, metric, run
        self.sign = -1 if metric in HIGHER_IS_BETTER else 1
        self.known: dict[str, Spread] = {}
        self.curves: dict[str, tuple[tuple[float, Spread], ...]] = {}

    def score(self, churn: Churn) -> float:
        """The mean to minimise; infinity where samples were not finite."""
        mean = self.known[churn_name(churn)].mean
        return math.inf if mean is None else self.sign * mean

    def best(self, settings: Sequence[Churn]) -> Churn:
        """The best of some settings; of equal ones the first."""
        missing = [s for s in settings if churn_name(s) not in self.known]
        if missing:
            self.known |= {point.name: point.scores[self.metric] for point in self.run(missing).points}
        return min(settings, key=self.score)

    def stages(self) -> list[Stage]:
        """The rows of the ablation, without their fresh scores."""
        sweep = alone(self.grid, "S_churn")
        churn = self.best([s for s in sweep if s.S_churn])
        self.best(sweep)
        self._keep_curve("S_churn alone", sweep)
        bands = alone(self.grid, "S_max", churn)
        bands += alone(self.grid, "S_min", self.best(bands))
        band = self.best(bands)
        noises = alone(self.grid, "S_noise", churn)
        noise = self.best(noises)
        together = self._together(band.replace(S_noise=noise.S_noise), [*sweep, *bands, *noises])
        best = self.best([s for s in together if s.S_churn])
        chosen = (OFF, churn, band, noise, best)
        lists = ([OFF], sweep, bands, noises, together)
        return [
            Stage(name, setting, len({churn_name(s) for s in tried}), self._mean(setting), Spread(()), Spread(()))
            for name, setting, tried in zip(STAGES, chosen, lists, strict=True)
        ]

    def _together(self, start: Churn, before: list[Churn]) -> list[Churn]:
        """Everything tried up to the end: each parameter in turn from `start`, then a small joint grid."""
        tried, best = [*before, start], start
        for name in NAMES:
            sweep = alone(self.grid, name, best)
            if name == "S_churn":
                self.best(sweep)
                self._keep_curve("with the other parameters found", sweep)
            best = self.best([s for s in sweep if s.S_churn])
            tried += sweep
        self.best(tried)
        best = self.best([s for s in tried if s.S_churn])
        return tried + self._joint(best)

    def _joint(self, best: Churn) -> list[Churn]:
        """All combinations of each parameter's best value and the better of its neighbours, and those neighbours."""
        neighbours = [[s for s in jointly(self.grid, best, [name], reach=1) if s.S_churn] for name in NAMES]
        tried = [setting for near in neighbours for setting in near]
        self.best(tried)
        pairs = {}
        for name, near in zip(NAMES, neighbours, strict=True):
            others = [s for s in near if s != best]
            pairs[name] = sorted({getattr(s, name) for s in (best, *([self.best(others)] if others else []))})
        joint = combined(pairs, best)
        self.best(joint)
        return tried + joint

    def _keep_curve(self, name: str, sweep: Sequence[Churn]) -> None:
        self.curves[name] = tuple((s.S_churn, self.known[churn_name(s)]) for s in sweep)

    def _mean(self, setting: Churn) -> float | None:
        return self.known[churn_name(setting)].mean


def _with_fresh(stage: Stage, fresh: Comparison, metric: str) -> Stage:
    by_name = {point.name: point.scores[metric] for point in fresh.points}
    own, plain = by_name[churn_name(stage.churn)], by_name[churn_name(OFF)]
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    gain = Spread(
        tuple(None if a is None or b is None else sign * (a - b) for a, b in zip(own.values, plain.values, strict=True))
    )
    return Stage(stage.name, stage.churn, stage.tried, stage.selected, own, gain)
