"""An evaluation that can be stopped, shared and repeated: features chunk by chunk, scores from all chunks in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..component import require
from ..data import from_uint8, to_uint8
from ..metrics import Features, extractor_hash
from ..portions import Portion
from ..progress import Report, silent
from .compare import Spread
from .evaluation_judges import Judge, measured
from .evaluation_sources import Source
from .evaluation_work import Work
from .measures import Side
from .scores import Score, expanded

CHUNK = 64  # samples; part of the numbers, since features are computed a chunk at a time
PUBLISHED = 50_000  # samples of the scores in papers
ON_EACH = ("n_real", "reference", "features_sha256", "seeds", "sampler", "nfe", "ema")  # facts beside every score
ON_IMAGES = frozenset({"swd", "nearest"})
DEPENDS_ON_N = frozenset({"fd", "precision", "recall", "density", "coverage"})


def plan_of(source: Source, extractor: Features, *, images: bool) -> dict[str, Any]:
    """What the chunks depend on, as JSON data. images: whether the samples themselves are kept beside features."""
    features = {"name": str(extractor), "sha256": extractor_hash(extractor)}
    return {"format": 1, "source": source.identity(), "features": features, "image": source.image, "images": images}


def begin(source: Source, extractor: Features, *, images: bool, path: str | Path | None = None) -> Work:
    """The work of an evaluation, in a folder or in memory. Raises as `Work`."""
    return Work(path, plan_of(source, extractor, images=images), -(-len(source) // CHUNK))


def collect(
    source: Source,
    extractor: Features,
    work: Work,
    *,
    images: bool,
    portion: Portion | None = None,
    device: str = "cpu",
    progress: Report = silent,
) -> None:
    """Compute the chunks of a portion that are not there: features, logits, labels, and samples where `images` is set.

    device: where features are computed. Raises ValueError for samples that are not finite.
    """
    mine = list((portion or Portion()).of(work.chunks))
    for done, chunk in enumerate(mine):
        progress(done, len(mine), f"{min(len(source), done * CHUNK):,} samples")
        if chunk not in work:
            rows = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(source)))
            work.put(chunk, _chunk(source, rows, extractor, images, device))
    progress(len(mine), len(mine), "")


def _chunk(source: Source, rows: range, extractor: Features, images: bool, device: str) -> dict[str, Tensor]:
    x, labels, nfe = source.read(rows)
    found = measured(x, extractor, device)
    if labels is not None:
        found["labels"] = labels
    if nfe is not None:
        found["nfe"] = torch.tensor([nfe])
    if images:
        found["x"] = to_uint8(x) if source.image else x
    return found


@dataclass(frozen=True)
class Repeated:
    """One score over the repeats: what each gave, their least, mean and standard deviation (None for one repeat)."""

    each: tuple[Score, ...]

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation of the repeats."""
        return Spread(tuple(score.value for score in self.each))

    @property
    def least(self) -> float:
        """The smallest of the repeats: what papers give of three Fréchet distances."""
        return min(score.value for score in self.each)

    def to_dict(self) -> dict[str, Any]:
        """The first score as JSON data, with the mean as its value, and min, mean, std and the values of all."""
        spread = self.spread
        found = self.each[0].to_dict() | {"value": spread.mean}
        if len(self.each) > 1:
            found["error"] = None  # that of one repeat; the spread says more
        return found | {"min": self.least, "mean": spread.mean, "std": spread.std, "values": list(spread.values)}


@dataclass(frozen=True)
class Evaluation:
    """Scores, and all they depend on. warnings: what a reader must know before comparing them with others."""

    scores: tuple[Repeated, ...]
    extractor: Features
    facts: Mapping[str, Any]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data; the same however many processes took part, and however often they were stopped."""
        own = {name: self.facts[name] for name in ON_EACH if name in self.facts}
        scores = [score.to_dict() | own for score in self.scores]
        return dict(self.facts) | {"scores": scores, "warnings": list(self.warnings)}


def conclude(source: Source, work: Work, judge: Judge, repeats: int, facts: Mapping[str, Any]) -> Evaluation:
    """The scores of finished work: `repeats` parts of equal size after each other, each scored alone.

    Raises ValueError where chunks are missing or the samples are no `repeats` equal parts.
    """
    gaps = work.missing()
    require(not gaps, f"{len(gaps)} of {work.chunks} chunks are missing; they must be computed first")
    require(
        repeats >= 1 and len(source) % repeats == 0, f"repeats: {len(source)} samples are not {repeats} equal parts"
    )
    n = len(source) // repeats
    by_metric: dict[str, list[Score]] = {}
    d = 0
    for side in sides_of(source, work, judge.extractor, n):
        d = side.f.shape[1]
        for score in judge.scores(side):
            by_metric.setdefault(score.metric, []).append(score)
    scores = tuple(Repeated(tuple(each)) for each in by_metric.values())
    nfe = work.joined("nfe")
    known: dict[str, Any] = {
        "n": n,
        "repeats": repeats,
        "reference": dict(judge.facts),
        "n_real": None if judge.real is None else len(judge.real.x),
        "features": judge.extractor.to_dict(),
        "features_sha256": extractor_hash(judge.extractor),
        "d": d,
        "versions": {"elucidiff": __version__, "torch": torch.__version__},
    }
    known |= {} if nfe is None else {"nfe": int(nfe.max())}
    return Evaluation(scores, judge.extractor, dict(facts) | known, tuple(cautions(scores, n, d, judge)))


def sides_of(source: Source, work: Work, extractor: Features, n: int) -> Iterator[Side]:
    """The samples of finished work, n at a time; only the one at hand is in memory in float64."""
    parts: dict[str, tuple[Tensor, ...]] = {}
    for name in ("features", "logits", "labels", "x"):
        if (joined := work.joined(name)) is not None:
            parts[name] = joined.split(n)
    for i in range(-(-len(source) // n)):
        x = parts["x"][i] if "x" in parts else torch.empty(n, *source.shape, device="meta")
        x = from_uint8(x) if x.dtype == torch.uint8 else x
        known = {name: part[i].double() for name, part in parts.items() if name in ("features", "logits")}
        yield Side(x, parts["labels"][i] if "labels" in parts else None, extractor, known)


def cautions(scores: Sequence[Repeated], n: int, d: int, judge: Judge) -> list[str]:
    """What must be known before these numbers are compared with others, one line each."""
    metrics, found = {score.each[0].metric: score.each[0] for score in scores}, []
    if n < PUBLISHED and DEPENDS_ON_N & {*metrics}:
        names = ", ".join(metrics[m].name for m in metrics if m in DEPENDS_ON_N)
        found.append(
            f"n = {n:,} is below {PUBLISHED:,}: compare {names} at the same n only, since the bias depends on n"
        )
    fd, reference = metrics.get("fd"), judge.n_reference
    fewest = n if reference is None else min(n, reference)
    if fd is not None and fewest <= d:
        real = "" if fd.real is None else f"; real data get {fd.real:.4g}"
        found.append(f"{fewest:,} samples in d = {d:,} dimensions: most of the {fd.name} is bias{real}")
    if judge.real is None:
        found.append("no value of real data beside these: name DATA too")
    elif len(judge.real.x) < n:
        found.append(f"the value of real data is of n = {len(judge.real.x):,}, all there are, and not of {n:,}")
    if judge.file is not None and judge.file.sha256 is None:
        found.append(f"{judge.facts['file']} does not say of which features its statistics are; {judge.extractor} here")
    return found


def keeps_images(metrics: Sequence[str]) -> bool:
    """Whether any of the metrics looks at the samples themselves. Raises ValueError for an unknown one."""
    return bool(ON_IMAGES & {*expanded(metrics)})
