"""What is asked of a sampling run, checked: seeds or latents, labels, conditions, and where it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .component import require
from .conditioning import checked_condition
from .denoiser import Denoiser, one_hot
from .seeds import Seeds, check_seeds
from .solvers import Run
from .tensors import widest_dtype

if TYPE_CHECKING:
    from .data import Dataset
    from .sampler import Sampler


def image_condition(denoiser: Denoiser, data: Dataset, rows: Sequence[int] | Tensor, y: Tensor) -> dict[str, Tensor]:
    """The condition (B, K, *size) of a model that has one, beside y (B, *), rows of the data; nothing for others.

    Raises ValueError where it can only come with the data, and these have none.
    """
    conditioning = denoiser.conditioning
    if conditioning is None:
        return {}
    c = conditioning.of(y) if conditioning.from_data else data.conditions(rows)
    if c is None:
        raise ValueError(f"{data.name}: has no conditions, and the model is conditioned by {conditioning}")
    return {"condition": c}


def follows_data(denoiser: Denoiser) -> bool:
    """Whether a seed alone does not say what a sample is to be: for image conditions, and labels that are vectors."""
    return denoiser.conditioning is not None or denoiser.vector_labels


def asked_by_data(denoiser: Denoiser, data: Dataset, seeds: Sequence[int]) -> dict[str, Tensor]:
    """What samples of a model are to follow that a seed alone does not say: image and labels of samples of the data.

    The sample of seed s follows sample s of the data, from the first again at their end: "condition" (n, K, *size),
    "labels" (n, label_dim). Nothing for a model that has only classes, which are drawn, or none (`follows_data`).

    Raises ValueError where the data have no conditions or no labels.
    """
    if not follows_data(denoiser):
        return {}
    rows = [int(seed) % len(data) for seed in seeds]
    y, labels = data.batch(rows)
    found = image_condition(denoiser, data, rows, y)
    if denoiser.vector_labels and labels is None:
        raise ValueError(f"{data.name}: has no labels, and the model's are vectors, of which none can be drawn")
    if denoiser.label_dim and labels is not None:
        found["labels"] = labels
    return found


class Request:
    """How many samples of what shape, their seeds or latents, labels and conditions.

    Raises ValueError for what does not fit together or does not fit the denoiser.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        seeds: Sequence[int] | None,
        latents: Tensor | None,
        shape: Sequence[int] | None,
        labels: Tensor | Sequence[int] | int | None,
        conditions: dict[str, Any],
    ) -> None:
        require(seeds is not None or latents is not None, "give seeds= (one integer a sample) or latents=")
        self.seeds = None if seeds is None else check_seeds(seeds)
        self.latents, self.label_dim, self.vector_labels = latents, denoiser.label_dim, denoiser.vector_labels
        self.n = len(latents) if latents is not None else len(self.seeds or ())
        require(self.n >= 1, "seeds: got none; expected at least one")
        require(
            self.seeds is None or len(self.seeds) == self.n, f"seeds: got {len(self.seeds or ())} for {self.n} latents"
        )
        own = denoiser.shape if latents is None else tuple(latents.shape[1:])
        require(
            shape is not None or own is not None, "shape= is needed: the denoiser does not know the shape of a sample"
        )
        self.shape = tuple(shape) if shape is not None else tuple(own or ())
        require(own is None or self.shape == own, f"shape: got {self.shape}; expected {own}")
        if latents is not None and denoiser.shape is not None:
            require(own == denoiser.shape, f"latents: got samples of shape {own}; the denoiser has {denoiser.shape}")
        self.device = next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
        self.labels = self._checked_labels(labels)
        self.conditions = self._checked_conditions(conditions, denoiser)

    def _checked_labels(self, labels: Tensor | Sequence[int] | int | None) -> Tensor | None:
        if labels is None:
            return None
        require(self.label_dim > 0, "labels: got some for a model without classes; leave them out")
        if isinstance(labels, (int, Integral)):
            labels = torch.full((self.n,), int(labels))
        labels = torch.as_tensor(labels)
        if labels.is_floating_point() and labels.shape == (self.label_dim,):
            labels = labels.expand(self.n, -1)  # one vector for all
        require(
            labels.ndim == 2 or not self.vector_labels,
            f"labels: got {labels.dtype} {tuple(labels.shape)}; this model's labels are vectors: expected "
            f"({self.n}, {self.label_dim}), or one of {self.label_dim} floating numbers for all",
        )
        require(bool(labels.isfinite().all()), "labels: got NaN or infinity; expected finite numbers")
        return one_hot(labels, self.label_dim, self.n)

    def _checked_conditions(self, conditions: dict[str, Any], denoiser: Denoiser) -> dict[str, Any]:
        """The conditions, the image that is concatenated to x as the network sees it, one a sample."""
        if denoiser.conditioning is None:
            return conditions
        c = checked_condition(denoiser.conditioning, conditions.get("condition"), self.shape, self.n)
        require(c is not None and bool(c.isfinite().all()), "condition: got NaN or infinity; expected finite numbers")
        return conditions | {"condition": None if c is None else c.to(self.device)}

    def parts(self, size: int | None) -> Iterator[slice]:
        """The request in batches of a size; all at once for None."""
        size = self.n if size is None else size
        require(size >= 1, f"batch_size: got {size}; expected at least 1")
        return (slice(start, min(start + size, self.n)) for start in range(0, self.n, size))

    def start(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        part: slice,
        sigmas: Tensor,
        dtype: torch.dtype,
        kind: type[Run] = Run,
    ) -> tuple[Run, Tensor, Tensor | None]:
        """The run of a part of the batch, its scaled latent and its labels. Draws latent and label, in this order."""
        noise = Seeds(self.seeds[part]) if self.seeds is not None else None
        latent = noise.normal(self.shape, torch.float32) if noise else None
        if self.latents is not None:
            latent = self.latents[part]
        labels = self._labels_of(part, noise)
        conditions = {k: self._part_of(v, part) for k, v in self.conditions.items()}
        if labels is not None:
            conditions["labels"] = labels.to(self.device)
        run = kind(denoiser, sampler.schedule, sampler.scaling, noise, conditions, sampler.solver.memory)
        drawing = [element for element in (sampler.solver, sampler.stochasticity) if element.draws]
        if noise is None and drawing:
            raise ValueError(f"{drawing[0].role} {drawing[0].kind!r} draws noise: give seeds= beside latents=")
        t = run.clock.grid(sigmas)[0]
        if dtype == torch.float64:
            dtype = widest_dtype(self.device)
        x = latent.to(self.device, dtype) * (run.scale(t) * run.sigma(t))  # type: ignore[union-attr]
        return run, x, labels

    def _labels_of(self, part: slice, noise: Seeds | None) -> Tensor | None:
        if not self.label_dim:
            return None
        # drawn also when labels are given, so that the solver's noise is the same either way
        drawn = noise.integers(self.label_dim) if noise else None
        if self.labels is not None:
            return self.labels[part]
        if self.vector_labels:
            raise ValueError(
                f"labels= is needed: this model's labels are vectors, of which none can be drawn; expected "
                f"({self.n}, {self.label_dim})"
            )
        if drawn is None:
            raise ValueError("labels= is needed: the model has classes, and without seeds= none can be drawn")
        return one_hot(drawn, self.label_dim, len(drawn))

    def _part_of(self, value: Any, part: slice) -> Any:
        per_sample = isinstance(value, Tensor) and value.ndim and len(value) == self.n
        return value[part] if per_sample else value
