"""Exponential moving averages of weights: a half-life counted in images (EDM), a power function of time (EDM2)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from ..component import Component, require
from ..denoiser import Preconditioned
from .profiles import gamma_of

if TYPE_CHECKING:
    from typing_extensions import Self


def ema_beta(batch: int, halflife: float, images_seen: float, ramp: float | None = 0.05) -> float:
    """The factor beta = 0.5^(batch / min(halflife, ramp * images_seen)), halflife in images (EDM paper, appendix F.2).

    With the ramp the average forgets the first random weights; without images seen it is a copy (beta = 0).
    """
    window = halflife if ramp is None else min(halflife, ramp * images_seen)
    return 0.5 ** (batch / window) if window > 0 else 0.0


class Averaging(Component):
    """How the weights of a run are averaged: theta_ema = beta theta_ema + (1 - beta) theta after every step.

    A new one defines `beta` and `name`; one that stands for several averages defines `members` too.
    """

    role: ClassVar[str] = "averaging"

    def members(self) -> tuple[Self, ...]:
        """The single averages it stands for."""
        return (self,)

    def beta(self, batch: int, images: float) -> float:
        """The factor of a step of `batch` images, `images` being the number seen after it."""
        raise NotImplementedError(f"{type(self).__name__} must define beta(batch, images)")

    @property
    def name(self) -> str:
        """What its snapshots are called, behind their number of images."""
        raise NotImplementedError(f"{type(self).__name__} must define name")


class HalfLife(Averaging, kind="half_life"):
    """beta = 0.5^(batch / min(halflife, ramp t)), t = images seen before the step: `ema_beta` (EDM paper, app. F.2).

    halflife is in images; ramp None: it is the half-life from the first step on.
    """

    formula: ClassVar[str] = "β = 0.5^(batch / min(halflife, ramp t))"
    references: ClassVar[tuple[str, ...]] = ("edm",)
    halflife: float = 30_000.0
    ramp: float | None = 0.05

    def validate(self) -> None:
        """Raise ValueError where a number is out of its range."""
        require(self.halflife > 0, f"halflife: got {self.halflife}; expected a number of images above 0")
        require(self.ramp is None or self.ramp >= 0, f"ramp: got {self.ramp}; expected a number of at least 0, or none")

    def beta(self, batch: int, images: float) -> float:
        """Of the number of images before the step, as the EDM paper counts."""
        return ema_beta(batch, self.halflife, images - batch, self.ramp)

    @property
    def name(self) -> str:
        """halflife-30000."""
        return f"halflife-{self.halflife:.0f}"


class Power(Averaging, kind="power"):
    """beta = (1 - batch/t)^(gamma + 1), t = images seen after the step: the average of profile tau^gamma (EDM2, 3.1).

    sigma_rel: relative widths, standard deviation of the profile over t; one average is kept for each. From two,
    stored with every snapshot, any other width can be reconstructed after training (`training.posthoc`).
    """

    formula: ClassVar[str] = "β = (1 − batch/t)^(γ+1)"
    references: ClassVar[tuple[str, ...]] = ("edm2",)
    sigma_rel: float | tuple[float, ...] = (0.05, 0.10)

    def validate(self) -> None:
        """Raise ValueError for a width that no profile has, and for none."""
        require(bool(self._widths), "sigma_rel: got no width; expected at least one, e.g. (0.05, 0.10)")
        for width in self._widths:
            gamma_of(width)

    @property
    def _widths(self) -> tuple[float, ...]:
        return self.sigma_rel if isinstance(self.sigma_rel, tuple) else (self.sigma_rel,)

    def members(self) -> tuple[Self, ...]:
        """One of a single width for each width."""
        return tuple(self.replace(sigma_rel=width) for width in self._widths)

    def beta(self, batch: int, images: float) -> float:
        """Of a single width. Raises ValueError for several: each of `members()` has its own."""
        require(len(self._widths) == 1, f"beta: got the widths {self._widths}; ask each of members()")
        return (1 - batch / images) ** (gamma_of(self._widths[0]) + 1)

    @property
    def name(self) -> str:
        """0.050."""
        return "_".join(f"{width:.3f}" for width in self._widths)


def members_of(averagings: Sequence[Averaging]) -> tuple[Averaging, ...]:
    """All single averages, in order. Raises ValueError where two of them would share the name of their snapshots."""
    found = tuple(member for averaging in averagings for member in averaging.members())
    names = [member.name for member in found]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    require(twice is None, f"ema: two averages are called {twice}; widths must differ by 0.001, half-lives by an image")
    return found


class EMA:
    """A module that follows another: theta_ema = beta theta_ema + (1 - beta) theta; buffers are copied."""

    def __init__(self, module: nn.Module) -> None:
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._pairs: tuple[list[Tensor], list[Tensor]] = (
            [p.data for p in self._module.parameters()],
            [p.data for p in module.parameters()],
        )
        self._buffers = list(zip(self._module.buffers(), module.buffers(), strict=True))

    @property
    def module(self) -> nn.Module:
        """The averaged module, where it computes."""
        return self._module

    @property
    def whole(self) -> nn.Module:
        """The averaged module, on any device."""
        return self.module

    def together(self) -> AbstractContextManager[None]:
        """Within it `module` is there on the first rank, which of `sharded.ShardedEMA` it is not always."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """The averaged network's tensors by name, of a module that is Preconditioned."""
        return cast("Preconditioned", self.module).network.state_dict()

    @torch.no_grad()
    def update(self, beta: float) -> None:
        """Move towards the module's present weights."""
        averages, weights = self._pairs
        torch._foreach_lerp_(averages, weights, 1 - beta)
        for average, buffer in self._buffers:
            average.copy_(buffer)
