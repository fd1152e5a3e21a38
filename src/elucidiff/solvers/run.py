"""What a step may see of a sampling run, and the one loop that all solvers share."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..brownian import Brownian
from ..denoiser import Denoiser
from ..formulation import Scaling, Schedule
from ..seeds import Seeds
from .clock import Clock

if TYPE_CHECKING:
    from .solver import Solver, Stochasticity


@dataclass(frozen=True)
class Past:
    """One earlier step, as multistep solvers remember it: D at (t, x), and what the step chose to keep."""

    t: float
    x: Tensor
    denoised: Tensor
    kept: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """The run after step i (counted from 0): x (B, *) at time t and noise level sigma.

    `denoised` is D at the step's beginning, at noise level `sigma_hat` (after the churn, if any);
    `nfe` counts the network evaluations so far.
    """

    i: int
    steps: int
    t: float
    sigma: float
    x: Tensor
    sigma_hat: float
    denoised: Tensor
    nfe: int


class Run:
    """One sampling run: the ODE of Eq. 4, fresh noise, the past. It alone calls the denoiser.

    Times and levels are plain numbers; states are tensors (B, *) of one dtype on one device.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        scaling: Scaling,
        noise: Seeds | None,
        conditions: dict[str, Any],
        memory: int,
    ) -> None:
        self.denoiser, self.conditions, self.noise = denoiser, conditions, noise
        self.clock = Clock(schedule, scaling)
        self.past: deque[Past] = deque(maxlen=memory)
        self.steps = 0
        self.times: list[float] = []  # of the whole grid, once begun
        self.noisy = False  # whether the stochasticity draws noise
        self.nfe = 0
        self._first: Tensor | None = None  # D of the step's first evaluation
        self._kept: dict[str, Any] = {}
        self._brownian: Brownian | None = None
        self._rounded: dict[float, float] = {}
        self._covered = self._reached = math.inf  # the lowest level whose noise is spent: before this step, now

    def sigma(self, t: float) -> float:
        """The noise level at time t."""
        return self.clock.at(t).sigma

    def scale(self, t: float) -> float:
        """The scaling s at time t."""
        return self.clock.at(t).s

    def time(self, sigma: float) -> float:
        """The time of a noise level."""
        return self.clock.time(sigma)

    def round(self, sigma: float) -> float:
        """The nearest noise level at which the denoiser was trained."""
        if sigma not in self._rounded:
            self._rounded[sigma] = float(self.denoiser.round_sigma(torch.full((), sigma, dtype=torch.float64)))
        return self._rounded[sigma]

    def denoise(self, x: Tensor, t: float) -> Tensor:
        """D(x / s(t); sigma(t)), in the dtype of x. Counts one network evaluation."""
        moment = self.clock.at(t)
        return self._evaluate(x if moment.s == 1 else x / moment.s, moment.level)

    def denoise_at(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; sigma) of an unscaled x at any level, for solvers that work in x / s. Counts one evaluation."""
        return self._evaluate(x, torch.full((), sigma, dtype=torch.float64))  # half the time of torch.tensor

    def _evaluate(self, x: Tensor, level: Tensor) -> Tensor:
        D = self.denoiser(x, level, **self.conditions).to(x.dtype)
        self.nfe += 1
        return self.known(D)

    def known(self, denoised: Tensor) -> Tensor:
        """A D at the beginning of the step, as an evaluation there would give; counts none."""
        if self._first is None:
            self._first = denoised
        return denoised

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """dx/dt = (s'/s + sigma'/sigma) x - (s sigma'/sigma) D(x/s; sigma), Eq. 4. Undefined at sigma = 0."""
        if self.clock.at(t).sigma == 0:
            raise ValueError("velocity at sigma = 0 is undefined: a step to 0 ends with Euler (EDM paper, Algorithm 1)")
        return self.velocity_of(x, t, self.denoise(x, t))

    def velocity_of(self, x: Tensor, t: float, denoised: Tensor) -> Tensor:
        """The same for a D that is known, e.g. of a past step: `run.velocity_of(last.x, last.t, last.denoised)`."""
        moment = self.clock.at(t)
        return torch.sub(moment.x_weight * x, denoised, alpha=moment.D_weight)

    def keep(self, name: str, value: Any) -> None:
        """Leave a tensor, or a record of tensors and numbers, for the steps that follow: `run.past[-1].kept[name]`.

        Solvers themselves hold no state.
        """
        self._kept[name] = value

    def renoise(self, x: Tensor, t: float, t_up: float, S_noise: float = 1.0) -> Tensor:
        """The state x at time t raised to the noisier t_up by fresh noise.

        Its standard deviation is s_up S_noise sqrt(sigma_up^2 - sigma^2).
        """
        a, b = self.clock.at(t), self.clock.at(t_up)
        std = max(b.sigma**2 - a.sigma**2, 0.0) ** 0.5
        return torch.add(x if b.s == a.s else (b.s / a.s) * x, self.fresh_noise(x), alpha=std * b.s * S_noise)

    def fresh_noise(self, x: Tensor) -> Tensor:
        """The next standard normal draw of every sample, like x."""
        if self.noise is None:
            raise ValueError("this sampler draws noise: give seeds=, one for each latent")
        return self.noise.normal(x.shape[1:], x.dtype, x.device)

    def increment(self, x: Tensor, t: float, t_next: float) -> Tensor:
        """Standard normal numbers like x for the interval from t to t_next: Brownian increments over ln sigma.

        They depend on the seeds and on the two levels alone, so runs with other steps see the same path.
        """
        return self.noise_between(x, self.sigma(t), self.sigma(t_next))

    def noise_between(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The same for two levels sigma > sigma_next > 0.

        Fresh numbers where churn or an ancestral step has gone back up: the path's noise there is spent, and using it
        again would correlate the steps.
        """
        if sigma > self._covered or self.noise is None:
            return self.fresh_noise(x)
        if self._brownian is None:
            self._brownian = Brownian(self.noise.seeds, x.shape[1:])
        self._reached = min(self._reached, sigma_next)
        return self._brownian.increment(math.log(sigma), math.log(sigma_next)).to(x.device, x.dtype)

    def states(self, x: Tensor, sigmas: Tensor, solver: Solver, stochasticity: Stochasticity) -> Iterator[State]:
        """The loop, once: from x at sigmas[0] down to the last level, one State a step."""
        times = self.begin(sigmas, solver, stochasticity)
        for i, (t, t_next) in enumerate(pairwise(times)):
            state = self.advance(i, x, t, t_next, solver, stochasticity)
            x = state.x
            yield state

    def begin(self, sigmas: Tensor, solver: Solver, stochasticity: Stochasticity) -> list[float]:
        """The times of the levels; everything that depends on time alone is computed here, in one go."""
        self.times = times = self.clock.grid(sigmas)
        self.steps, self.noisy = len(times) - 1, stochasticity.draws
        if visited := stochasticity.visits(sigmas.tolist()):
            rounded = self.denoiser.round_sigma(torch.tensor(visited, dtype=torch.float64))
            self.clock.grid(rounded)
            self._rounded = dict(zip(visited, rounded.tolist(), strict=True))
        if inner := [t + c * (t_next - t) for c in solver.nodes for t, t_next in pairwise(times)]:
            self.clock.prefetch(torch.tensor(inner, dtype=torch.float64))
        return times

    def advance(
        self, i: int, x: Tensor, t: float, t_next: float, solver: Solver, stochasticity: Stochasticity
    ) -> State:
        """Step i, from x at time t to t_next."""
        self._first, self._kept = None, {}
        x_hat, t_hat = stochasticity.lift(self, x, t)  # e.g. Algorithm 2, lines 4-6
        x = solver.step(self, x_hat, t_hat, stochasticity.aim(self, t_hat, t_next))
        x = stochasticity.drop(self, x, t_hat, t_next)  # e.g. ancestral
        if self.sigma(t_next) == 0:
            x = self.denoiser.finish(x, **self.conditions)
        denoised = self._first if self._first is not None else x_hat
        self.past.append(Past(t_hat, x_hat, denoised, self._kept))
        self._covered = self._reached
        return State(i, self.steps, t_next, self.sigma(t_next), x, self.sigma(t_hat), denoised, self.nfe)
