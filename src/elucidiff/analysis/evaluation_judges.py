"""What samples are scored against: held-out data or the statistics of a file, and real data in their place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..component import require
from ..data import Dataset
from ..metrics import ClassFeatures, Features, Reference, SmallSampleWarning, Statistics, frechet_distance
from ..seeds import Stream, keyed
from .feature_cache import kept_features
from .measures import Sets, Side, agreeing, inception_score, same_classes
from .scores import Score, expanded, scores_of

OF_FILE = ("fd", "agreement", "is")  # what needs no more of the data than their statistics


def measured(x: Tensor, extractor: Features, device: str = "cpu") -> dict[str, Tensor]:
    """Features (n, d), and logits (n, K) of a classifier, of samples."""
    x = x.to(device).clone(memory_format=torch.contiguous_format)  # kernels sum by the strides: files differ in them
    found = {"features": extractor.features(x).cpu()}
    if isinstance(extractor, ClassFeatures):
        found["logits"] = extractor.logits(x).cpu()
    return found


@dataclass(frozen=True, eq=False)
class Judge:
    """What samples are scored against: held-out data, or the statistics of a file; and real data in their place.

    metrics: named one by one. reference, real, training: None where a file stands for the reference, or no data are
    there to play the samples. facts: what is to be said of the reference.
    """

    extractor: Features
    metrics: tuple[str, ...]
    reference: Side | None
    real: Side | None
    training: Dataset | None
    file: Reference | None
    facts: Mapping[str, Any]
    seed: int = 0

    @property
    def n_reference(self) -> int | None:
        """Samples of the reference; None where its file does not say."""
        return self.file.n if self.file else None if self.reference is None else len(self.reference.x)

    def scores(self, samples: Side) -> list[Score]:
        """The scores of samples."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallSampleWarning)  # `cautions` says it once, for all repeats
            if self.file is not None:
                return self._of_file(samples, self.file)
            if self.reference is None or self.real is None or self.training is None:
                raise ValueError("a judge needs data, or a file of statistics")
            sets = Sets(samples, self.real, self.reference, self.training, self.extractor, self.seed)
            return scores_of(sets, self.metrics)

    def _of_file(self, samples: Side, file: Reference) -> list[Score]:
        found, real, n = [], self.real, len(samples.x)

        def add(metric: str, name: str, value: float, error: float | None, ideal: float | None) -> None:
            found.append(Score(metric, name, value, error, ideal, n, file.n or 0, str(self.extractor)))

        if "fd" in self.metrics:
            of = file.statistics
            ideal = None if real is None else frechet_distance(Statistics.of(real.f), of)
            add("fd", self.extractor.fd_name, frechet_distance(Statistics.of(samples.f), of), None, ideal)
        if not isinstance(self.extractor, ClassFeatures):
            return found
        if "agreement" in self.metrics and same_classes(samples, self.extractor):
            ideal = None if real is None or not same_classes(real, self.extractor) else agreeing(real)[0]
            add("agreement", "class agreement", *agreeing(samples), ideal)
        if "is" in self.metrics:
            ideal = None if real is None else inception_score(real, self.seed).value
            add("is", "class score (IS)", *inception_score(samples, self.seed), ideal)
        return found


def judge_by_data(
    data: Dataset, num: int, metrics: Sequence[str], extractor: Features, *, heldout: float = 0.5, device: str = "cpu"
) -> Judge:
    """Against the held-out part of data; up to `num` of the rest play the samples. Raises ValueError for a metric."""
    wanted = expanded(metrics)
    rest, reference = data.split(heldout)
    facts = {"name": data.name, "n": len(reference), "heldout": heldout, "fingerprint": data.fingerprint()}
    held = _side(reference, extractor, device)
    return Judge(extractor, wanted, held, _played(rest, num, extractor, device), rest, None, facts)


def judge_by_file(
    file: Reference,
    path: str,
    sha256: str,
    data: Dataset | None,
    num: int,
    metrics: Sequence[str],
    extractor: Features,
    *,
    device: str = "cpu",
) -> Judge:
    """Against the statistics of a file; up to `num` of the data, if given, play the samples.

    Raises ValueError for metrics that need the data themselves, and for statistics of other features.
    """
    wanted = metrics_of(metrics, against_file=True)
    file.check(extractor)
    facts = {"file": path, "sha256": sha256, "n": file.n, "extractor": file.extractor, "hash": file.sha256}
    real = None if data is None else _played(data, num, extractor, device)
    return Judge(extractor, wanted, None, real, data, file, facts)


def _side(data: Dataset, extractor: Features, device: str) -> Side:
    x = data.tensor()
    return Side(x, None, extractor, _kept(data, x, extractor, device))


def _played(data: Dataset, num: int, extractor: Features, device: str) -> Side:
    """At most `num` real samples, chosen as `score_samples` does."""
    pick = torch.from_numpy(keyed(0, Stream.SPLIT, 1).permutation(len(data)))[:num]
    chosen = data.subset(pick)
    x, labels = chosen.batch(torch.arange(len(chosen)))
    return Side(x, labels, extractor, _kept(chosen, x, extractor, device))


def _kept(data: Dataset, x: Tensor, extractor: Features, device: str) -> dict[str, Tensor]:
    return kept_features(data.fingerprint(), extractor, device, lambda: measured(x, extractor, device))


def metrics_of(metrics: Sequence[str], *, against_file: bool) -> tuple[str, ...]:
    """The metrics one by one. Raises ValueError for an unknown one, and where a file lacks what it needs."""
    wanted = expanded(metrics)
    other = [metric for metric in wanted if metric not in OF_FILE]
    require(
        not (against_file and other),
        f"metrics: {', '.join(other)} need the data themselves; against statistics in a file: {', '.join(OF_FILE)}",
    )
    return wanted
