"""Guidance: from two denoisers a third one that exaggerates what the first knows better than the second.

    D_g(x; sigma) = D_ref(x; sigma) + w (D_main(x; sigma) - D_ref(x; sigma))   for sigma in (sigma_lo, sigma_hi]
    D_g(x; sigma) = D_main(x; sigma)                                           elsewhere

The reference is the same model without its label (Ho and Salimans 2022), an unconditional model, or a worse version of
the same model (autoguidance, Karras et al. 2024). Limiting guidance to an interval of noise levels is from Kynkaanniemi
et al. (2024), and so is which of its ends belongs to it.

The two answers come from two calls of a network, not from one call on a doubled batch: D_main keeps its bits, memory
does not double, and on a CPU it is faster once the batch fills the machine (demo network, one thread: the doubled
batch takes 0.65 to 0.85 of the time at 1 to 16 samples, 1.15 to 1.19 at 64 to 256).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from .citations import bibtex
from .component import require
from .denoiser import Denoiser, FunctionDenoiser, Wrapper, as_denoiser

AnyDenoiser = Denoiser | Callable[..., Tensor]


class Guided(Wrapper):
    """What both kinds of guidance share. Subclasses say what the reference answers.

    `weight` w: 1 is no guidance, above 1 exaggerates, 0 is the reference alone. With w = 1 the reference is never
    called, nor asked which noise levels it supports: the samples are those of `denoiser`, bit for bit. `interval` is
    (sigma_lo, sigma_hi] in units of the data, sigma_hi may be infinite; None guides at every level.

    Levels: those that `denoiser` supports, narrowed to those of the reference as far as the interval needs it.

    Cost: `Result.nfe` counts calls of D_g. Each is one network evaluation, and one more within the interval.
    `main_calls` and `reference_calls` count both since the object was made: a run really takes
    nfe (1 + reference_calls / main_calls) network evaluations a sample.

    Raises ValueError for a weight that is not finite, an interval without 0 <= sigma_lo < sigma_hi, and models whose
    shapes or noise levels do not fit together; TypeError for anything but numbers and denoisers.
    """

    kind: ClassVar[str] = ""
    references: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, main: AnyDenoiser, reference: AnyDenoiser | None, weight: float, interval: Sequence[float] | None
    ) -> None:
        super().__init__(main)
        self.reference = None if reference is None else as_denoiser(reference)
        self.weight = _checked_weight(weight)
        self.interval = _checked_interval(interval)
        self.main_calls = self.reference_calls = 0
        self.shape = self._common_shape()
        self.sigma_min, self.sigma_max = self._common_levels()

    def _common_shape(self) -> tuple[int, ...] | None:
        own, other = self.denoiser.shape, None if self.reference is None else self.reference.shape
        require(
            own is None or other is None or tuple(own) == tuple(other),
            f"guidance: the model has samples of shape {own}, the reference {other}; both must see the same x",
        )
        return own if own is not None else other

    def _common_levels(self) -> tuple[float, float]:
        main, reference = self.denoiser, self.reference
        low, high = main.sigma_min, main.sigma_max
        if reference is None or self.weight == 1:
            return low, high
        first, last = self.interval or (0.0, math.inf)
        if first < reference.sigma_min:
            low = max(low, reference.sigma_min)
        if last > reference.sigma_max:
            high = min(high, reference.sigma_max)
        require(
            low < high,
            f"guidance: the model supports the noise levels {main.sigma_min:g} to {main.sigma_max:g}, the reference "
            f"{reference.sigma_min:g} to {reference.sigma_max:g}; expected levels in common",
        )
        return low, high

    @property
    def network_calls(self) -> int:
        """How often a network was called since the object was made, by both models together."""
        return self.main_calls + self.reference_calls

    def finish(self, x: Tensor, **conditions: Any) -> Tensor:
        """What the guided model does with a finished sample."""
        conditions.pop("negative_labels", None)
        return self.denoiser.finish(x, **conditions)

    def settings(self) -> dict[str, Any]:
        """What was chosen, as JSON data: for `result.save(folder, guidance=guided.settings())`."""
        ends = None if self.interval is None else ["inf" if math.isinf(s) else s for s in self.interval]
        return {"kind": self.kind, "weight": self.weight, "interval": ends}

    def citation(self) -> str:
        """BibTeX of the papers that this guidance comes from."""
        return bibtex([*self.references, *(["interval"] if self.interval else [])])

    def _guide(
        self, x: Tensor, sigma: Tensor, conditions: dict[str, Any], for_reference: dict[str, Any] | None
    ) -> Tensor:
        """D_g for checked levels; None for a reference that would answer the same as the model."""
        self.main_calls += 1
        D_main = self.denoiser(x, sigma, **conditions)
        if self.weight == 1 or for_reference is None:
            return D_main
        inside = self._inside(sigma)
        if not inside.any():
            return D_main
        if inside.all():
            return self._extrapolated(D_main, self._ask_reference(x, sigma, for_reference))
        rows = inside.nonzero()[:, 0]
        part = {name: _rows_of(value, rows, len(x)) for name, value in for_reference.items()}
        D_ref = self._ask_reference(_rows_of(x, rows, len(x)), _rows_of(sigma, rows, len(x)), part)
        D_g = self._extrapolated(_rows_of(D_main, rows, len(x)), D_ref)
        return D_main.to(D_g.dtype).index_copy(0, rows.to(D_main.device), D_g)

    def _inside(self, sigma: Tensor) -> Tensor:
        if self.interval is None:
            return torch.ones_like(sigma, dtype=torch.bool)
        first, last = self.interval
        return (sigma > first) & (sigma <= last)

    def _ask_reference(self, x: Tensor, sigma: Tensor, conditions: dict[str, Any]) -> Tensor:
        self.reference_calls += 1
        return (self.reference or self.denoiser)(x, sigma, **conditions)

    def _extrapolated(self, D_main: Tensor, D_ref: Tensor) -> Tensor:
        return D_ref + self.weight * (D_main - D_ref)


class ClassifierFree(Guided):
    """Classifier-free guidance: away from what the model would answer without a label (Ho and Salimans 2022).

        guided = ed.guidance.ClassifierFree(denoiser, 2.0)
        ed.sample(guided, ed.EDM, seeds=range(16), labels=3)

    `denoiser` has classes. D_ref is its own answer without a label (the zero vector), which it knows only if it was
    trained with `label_dropout`; a model that records that it was not gives a warning. `unconditional`, another
    model, answers instead: without classes, or with classes that are not asked for.

    D_g is called with `labels`, and optionally with `negative_labels`, the classes to lead away from in place of no
    class: one for all, indices (B,) or vectors (B, label_dim). Without any labels there is nothing to guide towards,
    and a model without `unconditional` answers alone.

    Papers that write (1 + w) D_main - w D_ref mean this weight less 1.
    """

    kind: ClassVar[str] = "classifier_free"
    references: ClassVar[tuple[str, ...]] = ("cfg",)

    def __init__(
        self,
        denoiser: AnyDenoiser,
        weight: float,
        interval: Sequence[float] | None = None,
        *,
        unconditional: AnyDenoiser | None = None,
    ) -> None:
        super().__init__(denoiser, unconditional, weight, interval)
        require(
            self.label_dim > 0,
            "ClassifierFree: got a model without classes (label_dim 0); expected a class-conditional one. "
            "Any other model can be guided by a worse version of itself: Auto(denoiser, guide, weight)",
        )
        if self.weight != 1:
            _warn_of_missing_label_dropout(self.reference or self.denoiser)

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        negative_labels: Tensor | int | None = None,
        **conditions: Any,
    ) -> Tensor:
        """D_g for checked levels above 0, () or (B,)."""
        labelled = conditions if labels is None else conditions | {"labels": labels}
        reference: dict[str, Any] | None = conditions
        if negative_labels is not None:
            require(
                self.reference is None or self.reference.label_dim > 0,
                "negative_labels: got some for an unconditional model without classes; leave them out",
            )
            reference = conditions | {"labels": _for_all(negative_labels, len(x))}
        elif labels is None and self.reference is None:
            reference = None
        return self._guide(x, sigma, labelled, reference)


class Auto(Guided):
    """Autoguidance: away from the mistakes of a worse version of the model (Karras et al. 2024, "a bad version").

        guided = ed.guidance.Auto(denoiser, ed.load("runs/digits/snapshots/000050"), 2.0)

    `guide` is any second denoiser of the same samples and classes: smaller, less trained, or spoilt in the same way. It
    is called with the same labels, so classes are not exaggerated and variety suffers less.
    """

    kind: ClassVar[str] = "auto"
    references: ClassVar[tuple[str, ...]] = ("autoguidance",)

    def __init__(
        self, denoiser: AnyDenoiser, guide: AnyDenoiser, weight: float, interval: Sequence[float] | None = None
    ) -> None:
        super().__init__(denoiser, as_denoiser(guide), weight, interval)
        other = self.label_dim if self.reference is None else self.reference.label_dim
        require(
            isinstance(self.reference, FunctionDenoiser) or other == self.label_dim,
            f"Auto: got a guide with {other} classes for a model with {self.label_dim}; expected the same. A guide "
            "without classes is ClassifierFree(denoiser, weight, unconditional=guide)",
        )

    def denoise(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        """D_g for checked levels above 0, () or (B,)."""
        return self._guide(x, sigma, conditions, conditions)


def _checked_weight(weight: float) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise TypeError(f"weight: got {weight!r} ({type(weight).__name__}); expected a number, 1 for no guidance")
    require(math.isfinite(weight), f"weight: got {weight}; expected a finite number, 1 for no guidance")
    return float(weight)


def _checked_interval(interval: Sequence[float] | None) -> tuple[float, float] | None:
    if interval is None:
        return None
    if not isinstance(interval, (tuple, list)) or any(not isinstance(s, Real) for s in interval):
        raise TypeError(f"interval: got {interval!r}; expected two noise levels (sigma_lo, sigma_hi), or None")
    ends = tuple(float(s) for s in interval)
    require(
        len(ends) == 2 and 0 <= ends[0] < ends[1],
        f"interval: got {interval!r}; expected two noise levels (sigma_lo, sigma_hi) with 0 <= sigma_lo < sigma_hi",
    )
    return ends[0], ends[1]


def _warn_of_missing_label_dropout(denoiser: Denoiser) -> None:
    """Warn when a model with classes records that it never saw a sample without a label."""
    if not denoiser.label_dim:
        return
    infos = [getattr(module, "info", None) for module in denoiser.modules()]
    if any(_label_dropout(info) == 0 for info in infos):
        warnings.warn(
            "ClassifierFree: the model was trained without label dropout and does not know what to answer without a "
            "label; train with label_dropout=0.1, give unconditional=, or use Auto with an earlier snapshot",
            stacklevel=3,
        )


def _label_dropout(info: Any) -> Any:
    """What a model's record says, {"training": {"config": {"label_dropout": p}}}; None where it says nothing."""
    for name in ("training", "config", "label_dropout"):
        info = info.get(name) if isinstance(info, dict) else None
    return info


def _for_all(labels: Tensor | int, batch: int) -> Tensor | int:
    return torch.full((batch,), int(labels)) if isinstance(labels, Integral) else labels


def _rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """The rows of what has one for each sample; anything else as it is."""
    per_sample = isinstance(value, Tensor) and value.ndim and len(value) == batch
    return value[rows.to(value.device)] if per_sample else value
