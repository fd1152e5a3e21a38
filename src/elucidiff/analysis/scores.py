"""Scores of samples against held-out data, each beside the value that real data get at the same size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..component import require
from ..data import Dataset, from_uint8, to_uint8
from ..errors import unknown
from ..metrics import ClassFeatures, Features, extractor_for
from ..seeds import Stream, keyed
from .measures import MEASURES, Sets, Side

METRICS = ("fd", "kd", "agreement")  # unless others are asked for
ALL_METRICS = tuple(name for names in MEASURES for name in names)
GROUPS = {"prdc": ("precision", "recall", "density", "coverage")}


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


def expanded(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics with groups in full, each once. Raises ValueError for an unknown name."""
    for metric in metrics:
        known = (*ALL_METRICS, *GROUPS)
        require(metric in known, unknown("metric", metric, known))
    return tuple(dict.fromkeys(name for metric in metrics for name in GROUPS.get(metric, (metric,))))


def usual_metrics(data: Dataset, extractor: Features) -> tuple[str, ...]:
    """The Frechet distance, and class agreement where the extractor tells the classes of these data apart."""
    classes = isinstance(extractor, ClassFeatures) and 0 < data.label_dim == extractor.label_dim
    return ("fd", "agreement") if classes else ("fd",)


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
    """Scores of samples (n, *) in the units of the data: Frechet and kernel distance and class agreement unless named.

    Images are rounded to 256 levels first, as files hold them: a score does not depend on whether they were written.
    `real` gives the value that real data would get: n of its samples (all, when it has fewer) against
    the same reference. `extractor` is what all of it is measured on, chosen by the data when None. `labels` are the
    asked classes (n, K); agreement is measured where the extractor is a classifier of K classes: the one that ships
    for the digits, or one of `metrics.train_classifier`. So is the Inception score ("is"), without labels.

    metrics: of ALL_METRICS, and "prdc" for precision, recall, density and coverage; see `elucidiff.metrics` for what
    each is. "swd" of images and "nearest" are measured on the images themselves; "nearest" takes `real`
    for the data that the model was trained on. Unknown metrics raise ValueError.
    """
    wanted = expanded(metrics)
    require(
        tuple(samples.shape[1:]) == reference.shape,
        f"samples have shape {tuple(samples.shape[1:])}, the data {reference.shape}",
    )
    if reference.is_image:
        samples = from_uint8(to_uint8(samples))
    extractor = extractor or extractor_for(reference.shape, reference.source)
    pick = torch.from_numpy(keyed(seed, Stream.SPLIT, 1).permutation(len(real)))[: len(samples)]
    sides = Side(samples, labels, extractor), Side(*real.batch(pick), extractor)
    sets = Sets(*sides, Side(reference.tensor(), None, extractor), real, extractor, seed)
    return scores_of(sets, wanted)


def scores_of(sets: Sets, wanted: Sequence[str]) -> list[Score]:
    """The scores of sides that are there, of metrics named one by one, in the order of MEASURES."""
    found = [m for names, measure in MEASURES.items() if {*names} & {*wanted} for m in measure(sets)]
    n, n_reference = len(sets.samples.x), len(sets.reference.x)
    return [
        Score(m.metric, m.name, m.value, m.error, m.real, n, n_reference, m.features or str(sets.extractor))
        for m in found
        if m.metric in wanted
    ]
