"""The metrics by name: each measures samples, and real data in their place, against the same reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import Dataset
from ..metrics import (
    ClassFeatures,
    ClassScore,
    Features,
    Statistics,
    class_score,
    density_coverage,
    energy_distance,
    frechet_distance,
    kernel_distance,
    memorisation,
    mmd,
    patch_distance,
    precision_recall,
    sliced_wasserstein,
)
from ..metrics.sliced import PATCH
from ..seeds import Stream, keyed

SPLITS = 10  # of the Inception score, as published
IN_A_SPLIT = 50  # samples at least, or there are fewer splits


class Measured(NamedTuple):
    """One number of the samples, its standard error where there is one, and the same number of real data.

    features: what it was measured on, where that is not the extractor.
    """

    metric: str
    name: str
    value: float
    error: float | None
    real: float | None
    features: str | None = None


@dataclass(frozen=True)
class Side:
    """Samples x (n, *), their classes (n, K) or None, and what the extractor makes of them, computed when asked for.

    known: "features" and "logits" that were computed before; x may be a meta tensor where nothing else is asked of it.
    """

    x: Tensor
    labels: Tensor | None
    extractor: Features
    known: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def f(self) -> Tensor:
        """Features (n, d)."""
        return self.known["features"] if "features" in self.known else self.extractor.features(self.x)

    @cached_property
    def logits(self) -> Tensor:
        """Logits (n, K), of an extractor that is a classifier. Raises TypeError for another."""
        if not isinstance(self.extractor, ClassFeatures):
            raise TypeError(f"features {self.extractor} name no class")
        return self.known["logits"] if "logits" in self.known else self.extractor.logits(self.x)


@dataclass(frozen=True)
class Sets:
    """What is compared: samples and as many real ones against the reference.

    training: the data of which `real` is a part.
    """

    samples: Side
    real: Side
    reference: Side
    training: Dataset
    extractor: Features
    seed: int


def _frechet(s: Sets) -> Iterator[Measured]:
    reference = Statistics.of(s.reference.f)
    value, real = (frechet_distance(Statistics.of(side.f), reference) for side in (s.samples, s.real))
    yield Measured("fd", s.extractor.fd_name, value, None, real)


def _kernel(s: Sets) -> Iterator[Measured]:
    value, real = (kernel_distance(side.f, s.reference.f, seed=s.seed) for side in (s.samples, s.real))
    yield Measured("kd", "kernel distance", *value, real.value)


def _agreement(s: Sets) -> Iterator[Measured]:
    """The fraction of samples that are classified as the asked class; nothing without a classifier of these classes."""
    if isinstance(s.extractor, ClassFeatures) and same_classes(s.samples, s.extractor):
        value, error = agreeing(s.samples)
        real = agreeing(s.real)[0] if same_classes(s.real, s.extractor) else None
        yield Measured("agreement", "class agreement", value, error, real)


def same_classes(side: Side, extractor: ClassFeatures) -> bool:
    """Whether there are labels (n, K) of as many classes as the extractor knows."""
    return side.labels is not None and side.labels.shape[1] == extractor.label_dim


def agreeing(side: Side) -> tuple[float, float]:
    """The fraction of a side that is classified as its labels say, and its standard error."""
    asked = torch.as_tensor(side.labels).argmax(1)
    right = (side.logits.argmax(1) == asked.to(side.logits.device)).double()
    p = right.mean().item()
    return p, (p * (1 - p) / len(right)) ** 0.5


def _class_score(s: Sets) -> Iterator[Measured]:
    """Nothing without a classifier: the score knows no data."""
    if isinstance(s.extractor, ClassFeatures):
        value, real = (inception_score(side, s.seed) for side in (s.samples, s.real))
        yield Measured("is", "class score (IS)", *value, real.value)


def inception_score(side: Side, seed: int) -> ClassScore:
    """The class score of a side in ten splits, in fewer where these would be small."""
    n = len(side.logits)
    return class_score(side.logits, splits=max(1, min(SPLITS, n // IN_A_SPLIT)), seed=seed)


def _precision_recall(s: Sets) -> Iterator[Measured]:
    value, real = (precision_recall(side.f, s.reference.f) for side in (s.samples, s.real))
    yield Measured("precision", "precision", value.precision, None, real.precision)
    yield Measured("recall", "recall", value.recall, None, real.recall)


def _density_coverage(s: Sets) -> Iterator[Measured]:
    value, real = (density_coverage(side.f, s.reference.f) for side in (s.samples, s.real))
    yield Measured("density", "density", value.density, None, real.density)
    yield Measured("coverage", "coverage", value.coverage, None, real.coverage)


def _sliced(s: Sets) -> Iterator[Measured]:
    """Patches of images; the numbers themselves of anything else."""
    shape, name = s.samples.x.shape[1:], "sliced Wasserstein distance"
    if len(shape) == 3 and min(shape[1:]) >= PATCH:
        value, real = (patch_distance(side.x, s.reference.x, seed=s.seed).value for side in (s.samples, s.real))
        yield Measured("swd", name, value, None, real, "patches")
        return
    flat = s.reference.x.flatten(1)
    found, ideal = (sliced_wasserstein(side.x.flatten(1), flat, seed=s.seed) for side in (s.samples, s.real))
    yield Measured("swd", f"{name} (squared)", *found, ideal.value, "numbers")


def _energy(s: Sets) -> Iterator[Measured]:
    value, real = (energy_distance(side.f, s.reference.f) for side in (s.samples, s.real))
    yield Measured("energy", "energy distance", *value, real.value)


def _mmd(s: Sets) -> Iterator[Measured]:
    value, real = (mmd(side.f, s.reference.f) for side in (s.samples, s.real))
    yield Measured("mmd", "Gaussian MMD (squared)", *value, real.value)


def _nearest(s: Sets) -> Iterator[Measured]:
    """Real: a random part of the reference plays the samples, half at most, against the training data and the rest."""
    training, held_out = s.training.tensor(), s.reference.x
    found = memorisation(s.samples.x, training, held_out, seed=s.seed)
    order = torch.from_numpy(keyed(s.seed, Stream.SPLIT, 4).permutation(len(held_out)))  # files may have one
    played, rest = held_out[order].tensor_split([min(len(s.samples.x), len(held_out) // 2)])
    real = memorisation(played, training, rest, seed=s.seed).excess if len(rest) > 1 else None
    yield Measured("nearest", "memorised (0: none, 1: copies)", found.excess, found.excess_error, real, "numbers")


# What each function measures, in the order in which scores are given.
MEASURES: dict[tuple[str, ...], Callable[[Sets], Iterator[Measured]]] = {
    ("fd",): _frechet,
    ("kd",): _kernel,
    ("agreement",): _agreement,
    ("is",): _class_score,
    ("precision", "recall"): _precision_recall,
    ("density", "coverage"): _density_coverage,
    ("swd",): _sliced,
    ("energy",): _energy,
    ("mmd",): _mmd,
    ("nearest",): _nearest,
}
