"""The metrics by name: each measures samples, and real data in their place, against the same reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from ..data import Dataset
from ..metrics import (
    ClassFeatures,
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
class Sets:
    """What is compared: samples and as many real ones against the reference; features are computed when asked for.

    training: the data of which `real` is a part. labels, real_labels: classes (n, K), or None.
    """

    samples: Tensor
    labels: Tensor | None
    real: Tensor
    real_labels: Tensor | None
    reference: Dataset
    training: Dataset
    extractor: Features
    seed: int

    @cached_property
    def held_out(self) -> Tensor:
        """The reference samples."""
        return self.reference.tensor()

    @cached_property
    def f(self) -> Tensor:
        """Features of the samples."""
        return self.extractor.features(self.samples)

    @cached_property
    def g(self) -> Tensor:
        """Features of the reference."""
        return self.extractor.features(self.held_out)

    @cached_property
    def h(self) -> Tensor:
        """Features of the real data in the samples' place."""
        return self.extractor.features(self.real)


def _frechet(s: Sets) -> Iterator[Measured]:
    reference = Statistics.of(s.g)
    value, real = (frechet_distance(Statistics.of(x), reference) for x in (s.f, s.h))
    yield Measured("fd", s.extractor.fd_name, value, None, real)


def _kernel(s: Sets) -> Iterator[Measured]:
    value, real = (kernel_distance(x, s.g, seed=s.seed) for x in (s.f, s.h))
    yield Measured("kd", "kernel distance", *value, real.value)


def _agreement(s: Sets) -> Iterator[Measured]:
    """The fraction of samples that are classified as the asked class; nothing without a classifier of these classes."""
    if isinstance(s.extractor, ClassFeatures) and _same_classes(s.labels, s.extractor):
        value, error = _agreeing(s.extractor, s.samples, s.labels)
        real = None
        if _same_classes(s.real_labels, s.extractor):
            real = _agreeing(s.extractor, s.real, s.real_labels)[0]
        yield Measured("agreement", "class agreement", value, error, real)


def _same_classes(labels: Tensor | None, extractor: ClassFeatures) -> TypeGuard[Tensor]:
    """Whether there are labels (n, K) of as many classes as the extractor knows."""
    return labels is not None and labels.shape[1] == extractor.label_dim


def _agreeing(extractor: ClassFeatures, samples: Tensor, labels: Tensor) -> tuple[float, float]:
    right = (extractor.logits(samples).argmax(1) == labels.argmax(1).to(samples.device)).double()
    p = right.mean().item()
    return p, (p * (1 - p) / len(right)) ** 0.5


def _class_score(s: Sets) -> Iterator[Measured]:
    """Nothing without a classifier: the score knows no data."""
    if isinstance(s.extractor, ClassFeatures):
        splits = [max(1, min(SPLITS, len(x) // IN_A_SPLIT)) for x in (s.samples, s.real)]
        value, real = (
            class_score(s.extractor.logits(x), splits=k, seed=s.seed)
            for x, k in zip((s.samples, s.real), splits, strict=True)
        )
        yield Measured("is", "class score (IS)", *value, real.value)


def _precision_recall(s: Sets) -> Iterator[Measured]:
    value, real = (precision_recall(x, s.g) for x in (s.f, s.h))
    yield Measured("precision", "precision", value.precision, None, real.precision)
    yield Measured("recall", "recall", value.recall, None, real.recall)


def _density_coverage(s: Sets) -> Iterator[Measured]:
    value, real = (density_coverage(x, s.g) for x in (s.f, s.h))
    yield Measured("density", "density", value.density, None, real.density)
    yield Measured("coverage", "coverage", value.coverage, None, real.coverage)


def _sliced(s: Sets) -> Iterator[Measured]:
    """Patches of images; the numbers themselves of anything else."""
    shape, name = s.samples.shape[1:], "sliced Wasserstein distance"
    if len(shape) == 3 and min(shape[1:]) >= PATCH:
        value, real = (patch_distance(x, s.held_out, seed=s.seed).value for x in (s.samples, s.real))
        yield Measured("swd", name, value, None, real, "patches")
        return
    flat = s.held_out.flatten(1)
    found, ideal = (sliced_wasserstein(x.flatten(1), flat, seed=s.seed) for x in (s.samples, s.real))
    yield Measured("swd", f"{name} (squared)", *found, ideal.value, "numbers")


def _energy(s: Sets) -> Iterator[Measured]:
    value, real = (energy_distance(x, s.g) for x in (s.f, s.h))
    yield Measured("energy", "energy distance", *value, real.value)


def _mmd(s: Sets) -> Iterator[Measured]:
    value, real = (mmd(x, s.g) for x in (s.f, s.h))
    yield Measured("mmd", "Gaussian MMD (squared)", *value, real.value)


def _nearest(s: Sets) -> Iterator[Measured]:
    """Real: a random part of the reference plays the samples, half at most, against the training data and the rest."""
    training, held_out = s.training.tensor(), s.held_out
    found = memorisation(s.samples, training, held_out, seed=s.seed)
    order = torch.from_numpy(keyed(s.seed, Stream.SPLIT, 4).permutation(len(held_out)))  # files may have one
    played, rest = held_out[order].tensor_split([min(len(s.samples), len(held_out) // 2)])
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
