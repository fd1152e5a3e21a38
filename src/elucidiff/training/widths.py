"""Which length of averaging is best: models of many widths from one run, each sampled and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analysis.cells import Bench
from ..analysis.compare import HIGHER_IS_BETTER, Spread
from ..analysis.store import Store
from ..component import require
from ..data import Dataset
from ..design import EDM, Design
from ..identity import fingerprint
from ..metrics import Features
from ..progress import Report, silent
from ..sampler import Sampler, sampler_of
from .posthoc import plan, reconstruct


@dataclass(frozen=True)
class Width:
    """One width and its scores. error: of the reconstructed profile (`profile_error`), 0 for a stored one."""

    sigma_rel: float
    error: float
    nfe: int
    scores: Mapping[str, Spread]

    def to_dict(self) -> dict[str, Any]:
        """The width as JSON data."""
        scores = {metric: spread.to_dict() for metric, spread in self.scores.items()}
        return {"sigma_rel": self.sigma_rel, "profile_error": self.error, "nfe": self.nfe, "scores": scores}


@dataclass(frozen=True)
class Sweep:
    """What `sweep` measured. real: the score of real data at the same size; facts: what all widths share."""

    widths: tuple[Width, ...]
    real: Mapping[str, float | None]
    facts: Mapping[str, Any]

    def best(self, metric: str) -> Width | None:
        """The width with the best mean; None when none has one."""
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        known = [w for w in self.widths if w.scores[metric].mean is not None]
        return min(known, key=lambda w: sign * (w.scores[metric].mean or 0.0), default=None)

    def behind(self, width: Width, metric: str) -> Spread:
        """How much a width scores above the best one, repeat by repeat on the same seeds.

        Its spread is that of the difference, often a tenth of the scores' own.
        """
        best = self.best(metric)
        pairs = zip(width.scores[metric].values, best.scores[metric].values if best else (), strict=best is not None)
        return Spread(tuple(None if a is None or b is None else a - b for a, b in pairs))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data; the same for every run of the same sweep, resumed or not."""
        best = {m: None if (w := self.best(m)) is None else w.sigma_rel for m in self.real}
        widths = [
            width.to_dict() | {"behind_best": {m: self.behind(width, m).to_dict() for m in self.real}}
            for width in self.widths
        ]
        return dict(self.facts) | {"real": dict(self.real), "best": best, "widths": widths}


def sweep(
    run: str | Path | Sequence[str | Path],
    data: Dataset,
    widths: Sequence[float],
    *,
    at: float | None = None,
    sampler: Sampler | Design = EDM,
    metrics: Sequence[str] = ("fd",),
    num: int = 500,
    repeats: int = 1,
    first_seed: int = 0,
    heldout: float = 0.5,
    batch_size: int = 64,
    device: str = "cpu",
    extractor: Features | None = None,
    store: str | Path | None = None,
    progress: Report = silent,
) -> Sweep:
    """Score the models of a run with each relative width sigma_rel of averaging, one in memory at a time.

    Args:
        run: a run trained with `ema=(Power(),)`, or model directories of it, see `reconstruct`.
        data: a part of it is the reference, the rest plays the samples in the real-against-real value.
        widths: relative widths; the result has each once, in rising order.
        at: images seen at the end of the averages; None is the last snapshot.
        sampler: draws the samples of every width.
        metrics: of `score_samples`.
        num: samples a repeat.
        repeats: repeat r uses the seeds first_seed + r num and following, the same for every width, so that
            differences between widths are those of one and the same noise.
        first_seed: the first of all seeds.
        heldout: the part of the data that is the reference.
        batch_size: samples the network sees at a time.
        device: where the models run.
        extractor: what the metrics are measured on; chosen by the data when None.
        store: a file that keeps finished measurements, so that a stopped sweep goes on from there.
        progress: told what is measured next.

    Raises:
        ValueError: for widths, times, metrics or numbers that cannot be, and for a run without such averages.
    """
    require(bool(widths), "widths: got none; expected at least one, e.g. 0.05, 0.10, 0.15")
    require(repeats >= 1, f"repeats: got {repeats}; expected at least 1")
    plans = [plan(run, width, at) for width in sorted(set(widths))]  # every mistake is found before anything is drawn
    chosen = sampler_of(sampler)
    bench = Bench.of(
        data,
        num=num,
        metrics=metrics,
        heldout=heldout,
        batch_size=batch_size,
        extractor=extractor,
        store=Store(store),
    )
    real = bench.real()
    found = []
    for i, one in enumerate(plans):
        title = f"sigma_rel {one.sigma_rel:g}"
        progress(i * repeats, len(plans) * repeats, f"{title}, reconstructing")
        model = reconstruct(run, one.sigma_rel, at)
        require(model.shape == data.shape, f"the model's samples have shape {model.shape}, the data {data.shape}")
        identity, cells = fingerprint(model), []
        model.to(device)
        for r in range(repeats):
            progress(i * repeats + r, len(plans) * repeats, f"{title}, repeat {r + 1} of {repeats}")
            seed = first_seed + r * num
            note = {"sigma_rel": one.sigma_rel, "images": one.at, "seeds": [seed, seed + num - 1]}
            cells.append(bench.measured(identity, model, chosen, seed, note))
        scores = {m: Spread(tuple(cell["scores"].get(m) for cell in cells)) for m in bench.metrics}
        found.append(Width(one.sigma_rel, one.error, max(cell["nfe"] for cell in cells), scores))
    progress(len(plans) * repeats, len(plans) * repeats, "")
    stored = [{"images": s.images, "sigma_rel": s.sigma_rel} for s in plans[0].stored]
    facts = bench.facts() | {"repeats": repeats, "first_seed": first_seed, "sampler": chosen.to_dict()}
    return Sweep(tuple(found), real, facts | {"at": plans[0].at, "stored": stored})
