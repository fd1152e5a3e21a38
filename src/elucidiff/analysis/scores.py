"""Scores of samples against held-out data, each beside the value that real data get at the same size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..component import require
from ..data import Dataset, from_uint8, to_uint8
from ..errors import unknown
from ..metrics import ClassFeatures, Features, Statistics, extractor_for, frechet_distance, kernel_distance
from ..seeds import Stream, keyed

METRICS = ("fd", "kd", "agreement")


@dataclass(frozen=True)
class Score:
    """One number and what it depends on.

    value, error: of the samples (standard error, where there is one); real: the same number for real
    data of the same size. n: samples; n_reference: reference samples; features: the extractor, with its weights' hash
    where it was trained by the user.
    """

    metric: str
    name: str
    value: float
    error: float | None
    real: float | None
    n: int
    n_reference: int
    features: str

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON data."""
        return dict(self.__dict__)


def reference_and_real(data: Dataset, heldout: float = 0.5, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(reference, real): the held-out part of the data, and the rest, which plays the samples in the real line."""
    rest, reference = data.split(heldout, seed)
    return reference, rest


def score_samples(
    samples: Tensor,
    reference: Dataset,
    real: Dataset,
    *,
    labels: Tensor | None = None,
    metrics: Sequence[str] = METRICS,
    extractor: Features | None = None,
    seed: int = 0,
) -> list[Score]:
    """Frechet distance, kernel distance and class agreement of samples (n, *) in the units of the data.

    Images are rounded to 256 levels first, as files hold them: a score does not depend on whether they were written.
    `real` gives the value that real data would get: n of its samples (all, when it has fewer) against
    the same reference. `extractor` is what all of it is measured on, chosen by the data when None. `labels` are the
    asked classes (n, K); agreement is measured where the extractor is a classifier of K classes: the one that ships
    for the digits, or one of `metrics.train_classifier`. Unknown metrics raise ValueError.
    """
    for metric in metrics:
        require(metric in METRICS, unknown("metric", metric, METRICS))
    require(
        tuple(samples.shape[1:]) == reference.shape,
        f"samples have shape {tuple(samples.shape[1:])}, the data {reference.shape}",
    )
    if reference.is_image:
        samples = from_uint8(to_uint8(samples))
    extractor = extractor or extractor_for(reference.shape, reference.source)
    pick = torch.from_numpy(keyed(seed, Stream.SPLIT, 1).permutation(len(real)))[: len(samples)]
    real_batch, real_labels = real.batch(pick)
    f, g, h = (extractor.features(x) for x in (samples, reference.tensor(), real_batch))
    common: dict[str, Any] = {"n": len(samples), "n_reference": len(reference), "features": str(extractor)}
    scores = []
    if "fd" in metrics:
        stats = Statistics.of(g)
        value, ideal = (frechet_distance(Statistics.of(x), stats) for x in (f, h))
        scores.append(Score("fd", "Fréchet distance", value, None, ideal, **common))
    if "kd" in metrics:
        kd, ideal_kd = (kernel_distance(x, g, seed=seed) for x in (f, h))
        scores.append(Score("kd", "kernel distance", kd.value, kd.standard_error, ideal_kd.value, **common))
    if "agreement" in metrics and isinstance(extractor, ClassFeatures) and _same_classes(labels, extractor):
        value, error = _agreement(extractor, samples, labels)
        ideal_agreement = None
        if _same_classes(real_labels, extractor):
            ideal_agreement = _agreement(extractor, real_batch, real_labels)[0]
        scores.append(Score("agreement", "class agreement", value, error, ideal_agreement, **common))
    return scores


def _same_classes(labels: Tensor | None, extractor: ClassFeatures) -> TypeGuard[Tensor]:
    """Whether there are labels (n, K) of as many classes as the extractor knows."""
    return labels is not None and labels.shape[1] == extractor.label_dim


def _agreement(extractor: ClassFeatures, samples: Tensor, labels: Tensor) -> tuple[float, float]:
    """The fraction of samples that are classified as the asked class, and its standard error."""
    right = (extractor.logits(samples).argmax(1) == labels.argmax(1).to(samples.device)).double()
    p = right.mean().item()
    return p, (p * (1 - p) / len(right)) ** 0.5
