"""Quality against the number of network evaluations: any models and samplers, with spread, resumable."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..component import require
from ..data import DataLike, dataset_of
from ..denoiser import Denoiser
from ..identity import fingerprint
from ..metrics import Features
from ..models import design_of
from ..progress import Report, silent
from ..sampler import Sampler, sampler_of
from .budget import at_budget, has_own_cost
from .cells import Bench
from .store import Store

if TYPE_CHECKING:
    from ..design import Design

HIGHER_IS_BETTER = frozenset({"agreement", "is", "precision", "recall", "density", "coverage"})


@dataclass(frozen=True)
class Spread:
    """A score over the repeats: their values, mean and standard deviation (None for one repeat).

    Values are None where the samples were not finite, or where the metric does not apply; so is the mean then.
    """

    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        """The values; none of them when one is missing, since a mean of the survivors would flatter."""
        known = [v for v in self.values if v is not None]
        return known if len(known) == len(self.values) else []

    @property
    def mean(self) -> float | None:
        """Of the repeats."""
        return statistics.fmean(self.known) if self.known else None

    @property
    def std(self) -> float | None:
        """Of the repeats, over n - 1."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Mean, standard deviation and values as JSON data."""
        return {"mean": self.mean, "std": self.std, "values": list(self.values)}


@dataclass(frozen=True)
class Point:
    """A sampler on a model at one budget. nfe: evaluations made; budget: asked for, None where it has its own cost."""

    model: str
    name: str
    budget: int | None
    nfe: int
    sampler: Sampler
    scores: Mapping[str, Spread]

    def to_dict(self) -> dict[str, Any]:
        """The point as JSON data."""
        scores = {metric: spread.to_dict() for metric, spread in self.scores.items()}
        own = {"model": self.model, "sampler": self.name, "budget": self.budget, "nfe": self.nfe}
        return own | {"scores": scores, "settings": self.sampler.to_dict()}


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured. real: the score of real data at the same size; facts: what all points share."""

    points: tuple[Point, ...]
    real: Mapping[str, float | None]
    budgets: tuple[int, ...]
    facts: Mapping[str, Any]

    def rows(self) -> dict[tuple[str, str], list[Point]]:
        """The points of each (model, sampler), in the order given."""
        found: dict[tuple[str, str], list[Point]] = {}
        for point in self.points:
            found.setdefault((point.model, point.name), []).append(point)
        return found

    def best(self, metric: str, budget: int) -> Point | None:
        """The point with the best mean at a budget; None when none has one."""
        there = [p for p in self.points if p.budget == budget and p.scores[metric].mean is not None]
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        return min(there, key=lambda p: sign * (p.scores[metric].mean or 0.0), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data; the same for every run of the same comparison, resumed or not."""
        points = [point.to_dict() for point in self.points]
        return dict(self.facts) | {"budgets": list(self.budgets), "real": dict(self.real), "points": points}


def compare(
    models: Mapping[str, Denoiser] | Denoiser,
    data: DataLike,
    samplers: Mapping[str, Sampler | Design | None],
    nfes: Sequence[int],
    *,
    num: int = 500,
    repeats: int = 3,
    metrics: Sequence[str] = ("fd",),
    first_seed: int = 0,
    heldout: float = 0.5,
    batch_size: int = 64,
    extractor: Features | None = None,
    store: str | Path | None = None,
    progress: Report = silent,
) -> Comparison:
    """Score every sampler on every model at every budget of network evaluations (NFE) a sample.

    Args:
        models: by name; each is scored against the same held-out data.
        data: what `ed.data.dataset_of` takes; a part of it is the reference, the rest plays the samples in the
            real-against-real value.
        samplers: by name; None stands for the one of the design that a model was trained with.
        nfes: budgets; a sampler gets as many steps as one pays for (see `at_budget`), and is left out where that is
            none. Adaptive solvers and fixed lists of levels run once, at their own cost.
        num: samples a repeat.
        repeats: repeat r uses the seeds first_seed + r num and following, the same for every sampler, so that
            comparisons are paired.
        metrics: of `score_samples`.
        first_seed: the first of all seeds.
        heldout: the part of the data that is the reference.
        batch_size: samples the network sees at a time.
        extractor: what the metrics are measured on; chosen by the data when None.
        store: a file to which every finished measurement is added at once, and from which those that
            depend on exactly the same models, data, sampler, seeds and versions are taken.
        progress: told what is measured next; an exception it raises ends the comparison, and nothing stored is lost.

    Raises:
        ValueError: for metrics, shapes or numbers that do not fit.
    """
    models = {"model": models} if isinstance(models, Denoiser) else dict(models)
    data, budgets = dataset_of(data), tuple(dict.fromkeys(nfes))
    require(bool(models) and bool(samplers), "compare: got no models or no samplers; expected at least one of each")
    require(repeats >= 1, f"repeats: got {repeats}; expected at least 1")
    require(bool(budgets), "nfe: got no budgets; expected at least one")
    bench = Bench.of(
        data,
        num=num,
        metrics=metrics,
        heldout=heldout,
        batch_size=batch_size,
        extractor=extractor,
        store=Store(store),
    )
    prints = {name: _identity(model, name, stored=store is not None) for name, model in models.items()}
    trials = [trial for name, model in models.items() for trial in _trials(name, model, samplers, budgets, data.shape)]
    cells = list(product(range(repeats), trials))  # whole repeats, which cost the same, so that the time left is true
    real = bench.real()
    found: dict[Trial, list[dict[str, Any]]] = {trial: [] for trial in trials}
    for done, (r, trial) in enumerate(cells):
        progress(done, len(cells), f"{trial.title(len(models))}, repeat {r + 1} of {repeats}")
        seed = first_seed + r * num
        note = {"model": trial.model, "sampler": trial.name, "budget": trial.budget, "seeds": [seed, seed + num - 1]}
        found[trial].append(bench.measured(prints[trial.model], models[trial.model], trial.sampler, seed, note))
    progress(len(cells), len(cells), "")
    points = tuple(trial.point(found[trial], bench.metrics) for trial in trials)
    facts = bench.facts() | {"models": prints, "repeats": repeats, "first_seed": first_seed}
    return Comparison(points, real, budgets, facts)


@dataclass(frozen=True)
class Trial:
    """A model and the sampler it gets at a budget; budget None: the sampler has a cost of its own."""

    model: str
    name: str
    budget: int | None
    sampler: Sampler

    def title(self, models: int) -> str:
        """For a progress bar."""
        cost = "at its own cost" if self.budget is None else f"NFE {self.budget}"
        return f"{self.model}, {self.name}, {cost}" if models > 1 else f"{self.name}, {cost}"

    def point(self, cells: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Point:
        """The trial with what its repeats gave."""
        scores = {m: Spread(tuple(cell["scores"].get(m) for cell in cells)) for m in metrics}
        nfe = max(cell["nfe"] for cell in cells)
        return Point(self.model, self.name, self.budget, nfe, self.sampler, scores)


def _trials(
    name: str,
    model: Denoiser,
    samplers: Mapping[str, Sampler | Design | None],
    budgets: Sequence[int],
    shape: tuple[int, ...],
) -> Iterator[Trial]:
    require(model.shape in (None, shape), f"{name}: samples have shape {model.shape}, the data {shape}")
    for label, choice in samplers.items():
        sampler = own_sampler(model, name) if choice is None else sampler_of(choice)
        if has_own_cost(sampler):
            yield Trial(name, label, None, sampler)
            continue
        for budget in budgets:
            if (afforded := at_budget(sampler, budget, shape, model)) is not None:
                yield Trial(name, label, budget, afforded[0])


def _identity(model: Denoiser, name: str, *, stored: bool) -> str:
    """The model's fingerprint. One without, a function, has its name for one comparison, and none in a store."""
    try:
        return fingerprint(model)
    except TypeError:
        if stored:
            raise
        return f"the function {name!r}"


def own_sampler(model: Denoiser, name: str = "model") -> Sampler:
    """The sampler of the design that a model was trained with. Raises ValueError when it records none."""
    design = design_of(model)
    if design is None:
        raise ValueError(f"{name}: this model records no design of its own; name a sampler")
    return design.sampler
