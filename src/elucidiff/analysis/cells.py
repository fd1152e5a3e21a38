"""One cell of a comparison: samples of a model and a sampler from a range of seeds, scored, or taken from the store."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..component import require
from ..data import Dataset
from ..denoiser import Denoiser, FixedBatch
from ..identity import tensor_digest
from ..metrics import Features, SmallSampleWarning, extractor_for
from ..request import asked_by_data, follows_data
from ..sampler import Sampler, sample
from .scores import Score, expanded, reference_and_real, score_samples
from .store import Store, key_of

KEPT = 4  # tensors whose features are remembered: reference, real data, and some room


@dataclass(frozen=True)
class Bench:
    """What all cells of a comparison share: the data to compare with, how samples are drawn and scored, the store."""

    reference: Dataset
    held_in: Dataset
    num: int
    metrics: tuple[str, ...]
    heldout: float
    batch_size: int
    extractor: Features
    store: Store
    fingerprint: str  # of all the data

    @classmethod
    def of(
        cls,
        data: Dataset,
        *,
        num: int,
        metrics: Sequence[str],
        heldout: float,
        batch_size: int,
        extractor: Features | None,
        store: Store,
    ) -> Bench:
        """The bench for a data set. Raises ValueError for a split, a batch size or numbers that are none."""
        require(batch_size >= 1, f"batch_size: got {batch_size}; expected at least 1")
        require(num >= 4, f"num: got {num}; expected at least 4 samples")
        reference, rest = reference_and_real(data, heldout)
        extractor = remembering(extractor or extractor_for(data.shape, data.source))
        return cls(reference, rest, num, expanded(metrics), heldout, batch_size, extractor, store, data.fingerprint())

    def facts(self) -> dict[str, Any]:
        """What all scores depend on."""
        return {
            "data": {"name": self.reference.name, "fingerprint": self.fingerprint, "heldout": self.heldout},
            "n_reference": len(self.reference),
            "num": self.num,
            "metrics": list(self.metrics),
            "features": self.extractor.to_dict(),
            "versions": {"elucidiff": __version__, "torch": torch.__version__},
        }

    def real(self) -> dict[str, float | None]:
        """The scores that real data get at the same size in the place of samples. Raises ValueError for bad metrics."""
        x, labels = self.held_in.batch(range(min(self.num, len(self.held_in))))

        def measure() -> dict[str, float | None]:
            return {score.metric: score.real for score in self._scores(x, labels)}

        found = self.store.get(key_of({"cell": "real"} | self.facts()), measure, {"cell": "real against real"})
        missing = [metric for metric in self.metrics if metric not in found]
        require(
            not missing,
            f"metrics: {', '.join(missing)} cannot be measured on these data; "
            f"leave it out of {', '.join(self.metrics)}",
        )
        return {metric: found[metric] for metric in self.metrics}

    def measured(
        self, identity: str, model: Denoiser, sampler: Sampler, seed: int, note: Mapping[str, Any]
    ) -> dict[str, Any]:
        """{"nfe", "scores", ...} of the samples of seeds `seed` and following; `identity`: the model's fingerprint."""
        size = 1 if sampler.solver.adaptive else self.batch_size  # an adaptive path depends on its batch
        device = next((t.device.type for t in (*model.parameters(), *model.buffers())), "cpu")
        how = {"model": identity, "sampler": sampler.to_dict(), "seed": seed, "batch": size, "device": device}
        if follows_data(model):
            how["follows"] = "the data"
        key = key_of({"cell": how} | self.facts())
        return dict(self.store.get(key, lambda: self._draw(model, sampler, seed, size), note))

    def _draw(self, model: Denoiser, sampler: Sampler, seed: int, size: int) -> dict[str, Any]:
        """Samples and their scores: None where a sample is not finite, or the metric does not apply to the model.

        A model that needs an image or a vector is given those of the data that are not the reference.
        """
        started, seeds = time.perf_counter(), range(seed, seed + self.num)
        asked: dict[str, Any] = asked_by_data(model, self.held_in, seeds)
        result = sample(
            FixedBatch(model, size),
            sampler,
            seeds=seeds,
            shape=self.reference.shape,
            batch_size=min(size, self.num),
            **asked,
        )
        x, scores = result.x.cpu(), dict[str, float | None].fromkeys(self.metrics)
        finite = bool(x.isfinite().all())
        if finite:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SmallSampleWarning)  # said once, by the real-against-real value
                scores |= {score.metric: score.value for score in self._scores(x, result.labels)}
        seconds = round(time.perf_counter() - started, 3)
        return {"nfe": result.nfe, "scores": scores, "finite": finite, "seconds": seconds}

    def _scores(self, x: Tensor, labels: Tensor | None) -> list[Score]:
        return score_samples(
            x, self.reference, self.held_in, labels=labels, metrics=self.metrics, extractor=self.extractor
        )


def remembering(extractor: Features) -> Features:
    """A twin of an extractor that reads the same tensor once: reference and real data come back in every cell."""
    twin = copy.copy(extractor)
    for name in ("features", "logits"):
        if hasattr(twin, name):
            object.__setattr__(twin, name, _remembered(getattr(extractor, name)))
    return twin


def _remembered(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    kept: dict[str, Tensor] = {}

    def call(samples: Tensor) -> Tensor:
        key = tensor_digest(samples)
        kept[key] = kept.pop(key) if key in kept else function(samples)  # the most recently used is last
        if len(kept) > KEPT:
            kept.pop(next(iter(kept)))
        return kept[key]

    return call
