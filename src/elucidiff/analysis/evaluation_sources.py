"""Samples by number, for scoring: drawn from a model, or read from a data set. The same numbers, the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._version import __version__
from ..component import require
from ..data import Dataset, from_uint8, to_uint8
from ..denoiser import Denoiser, FixedBatch
from ..identity import fingerprint, tensor_digest
from ..sampler import Sampler, sample
from ..seeds import as_ranges


class Samples(NamedTuple):
    """x (n, *) as files hold them, labels (n, K) or None, network evaluations a sample (None: unknown)."""

    x: Tensor
    labels: Tensor | None
    nfe: int | None


class Source:
    """n samples of one shape, by row."""

    shape: tuple[int, ...]
    image: bool  # whether they are images of 256 levels

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, rows: Sequence[int]) -> Samples:
        """The samples of these rows, each the same whatever others are read with it."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Everything that the samples depend on, as JSON data."""
        raise NotImplementedError

    def name(self, row: int) -> str:
        """What a sample is called."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class FromModel(Source):
    """One sample a seed.

    denoiser: guided, where guidance is wanted. labels: None, or one a seed, classes (n,) or vectors (n, K). condition:
    None, (1, *) or (n, *). shape: of the data; where it is not the denoiser's, samples are decoded. micro_batch: the
    network sees batches of exactly this size, so that a sample depends on its seed alone. Raises ValueError for
    shapes that differ.
    """

    denoiser: Denoiser
    sampler: Sampler
    seeds: tuple[int, ...]
    shape: tuple[int, ...]
    image: bool
    labels: Tensor | None = None
    condition: Tensor | None = None
    batch_size: int = 64
    micro_batch: int = 16
    decoded: bool = field(init=False)

    def __post_init__(self) -> None:
        own = self.denoiser.shape
        decoded = own is not None and own != self.shape
        shown = shape_shown(self.denoiser) if decoded else own
        require(
            shown in (None, self.shape),
            f"samples of the model have shape {shown}, the data {self.shape}; score it on data of its own shape",
        )
        object.__setattr__(self, "decoded", decoded)

    def __len__(self) -> int:
        return len(self.seeds)

    @cached_property
    def _model(self) -> FixedBatch:
        return FixedBatch(self.denoiser, self.micro_batch)

    def read(self, rows: Sequence[int]) -> Samples:
        """Draw them."""
        picked = torch.as_tensor(list(rows))
        c = self.condition
        conditions: dict[str, Any] = {} if c is None else {"condition": c if len(c) == 1 else c[picked]}
        found = sample(
            self._model,
            self.sampler,
            seeds=[self.seeds[i] for i in rows],
            shape=None if self.denoiser.shape else self.shape,
            labels=None if self.labels is None else self.labels[picked],
            batch_size=min(self.batch_size, len(rows)),
            **conditions,
        )
        x = found.x
        if self.decoded:
            with torch.no_grad():
                x = self._model.decode(x.float())
        return Samples(as_stored(x, self.image), found.labels, found.nfe)

    @cached_property
    def fingerprint(self) -> str:
        """Of all that the denoiser computes with."""
        return fingerprint(self.denoiser)

    def identity(self) -> dict[str, Any]:
        """Model, sampler, seeds, labels, condition, and what the last bit depends on."""
        return {
            "model": self.fingerprint,
            "sampler": self.sampler.to_dict(),
            "seeds": as_ranges(self.seeds),
            "labels": None if self.labels is None else tensor_digest(self.labels),
            "condition": None if self.condition is None else tensor_digest(self.condition),
            "micro_batch": self.micro_batch,
            "device": _device(self.denoiser).type,
            "versions": {"elucidiff": __version__, "torch": torch.__version__},
        }

    def name(self, row: int) -> str:
        """Its seed."""
        return f"seed {self.seeds[row]}"


@dataclass(frozen=True, eq=False)
class FromData(Source):
    """The first n samples of a data set; its labels say which class each was asked to be, unless others are given."""

    data: Dataset
    n: int
    labels: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of one sample."""
        return self.data.shape

    @property
    def image(self) -> bool:  # type: ignore[override]
        """Whether they are images of 256 levels."""
        return self.data.is_image

    def __len__(self) -> int:
        return self.n

    def read(self, rows: Sequence[int]) -> Samples:
        """Read them."""
        x, labels = self.data.batch(list(rows))
        return Samples(x, labels if self.labels is None else self.labels[list(rows)], None)

    def identity(self) -> dict[str, Any]:
        """The content of the data."""
        given = None if self.labels is None else tensor_digest(self.labels)
        return {"samples": self.data.fingerprint(), "n": self.n, "labels": given}

    def name(self, row: int) -> str:
        """Its file, or its number."""
        return self.data.names[row] if self.data.names else f"number {row}"


def shape_shown(denoiser: Denoiser) -> tuple[int, ...]:
    """The shape of what a sample shows: of a picture, for a latent model with its autoencoder."""
    with torch.no_grad():
        return tuple(denoiser.decode(torch.zeros(1, *(denoiser.shape or ()), device=_device(denoiser))).shape[1:])


def _device(denoiser: Denoiser) -> torch.device:
    return next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))


def as_stored(x: Tensor, image: bool) -> Tensor:
    """Samples as a file of them would give them back: images rounded to 256 levels, anything else float32."""
    return from_uint8(to_uint8(x)) if image else x.float()
