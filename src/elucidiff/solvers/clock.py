"""Everything a step needs that depends on time alone, computed once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..formulation import Scaling, Schedule


class Moment(NamedTuple):
    """One point of time of the ODE dx/dt = x_weight x - D_weight D(x/s; sigma), Eq. 4, as plain numbers."""

    t: float
    sigma: float
    s: float
    x_weight: float  # s'/s + sigma'/sigma
    D_weight: float  # s sigma'/sigma
    level: Tensor  # sigma as the 0-dim float64 CPU tensor that denoisers receive


class Clock:
    """Moments of a schedule and scaling, by time; remembers those it was asked for.

    Plain numbers cost a tenth of 0-dim tensors, and a grid computed in one vectorised call costs as
    much as a single moment; together they keep the loop's overhead below the network's launch time.
    """

    def __init__(self, schedule: Schedule, scaling: Scaling) -> None:
        self.schedule, self.scaling = schedule, scaling
        self._moments: dict[float, Moment] = {}
        self._times: dict[float, float] = {0.0: 0.0}
        self._listed: Tensor | None = None  # the levels of the last grid

    def at(self, t: float) -> Moment:
        """The moment at time t."""
        moment = self._moments.get(t)
        return moment if moment is not None else self.prefetch(torch.tensor([t], dtype=torch.float64))[0]

    def time(self, sigma: float) -> float:
        """The time of a noise level; 0 for sigma = 0, whatever the schedule's inverse makes of it."""
        if sigma not in self._times:
            self._times[sigma] = float(self.schedule.sigma_inv(torch.tensor(sigma, dtype=torch.float64)))
        return self._times[sigma]

    def grid(self, sigmas: Tensor) -> list[float]:
        """The times of noise levels, 0 for sigma = 0, with their moments computed at once.

        The moments carry the listed levels themselves, not sigma(sigma_inv(.)), so that a band test
        on a level is exact and solvers that work in sigma are the same under every schedule.
        """
        if sigmas is not self._listed:  # a run asks twice, for its latent and for its steps
            times = torch.where(sigmas == 0, 0.0, self.schedule.sigma_inv(sigmas))
            self.prefetch(times, sigmas)
            self._times.update(zip(sigmas.tolist(), times.tolist(), strict=True))
            self._listed = sigmas
        return [self._times[sigma] for sigma in sigmas.tolist()]

    def prefetch(self, times: Tensor, sigma: Tensor | None = None) -> list[Moment]:
        """Compute the moments of many times (n,) at once; their levels too, unless given."""
        sigma = self.schedule.sigma(times) if sigma is None else sigma
        s = self.scaling.s(sigma)
        log_slope = self.schedule.sigma_dot(times) / sigma
        x_weight = self.scaling.s_dot(sigma) * sigma / s * log_slope + log_slope
        columns = (times, sigma, s, x_weight, s * log_slope)
        rows = zip(*(column.tolist() for column in columns), sigma.unbind(), strict=True)
        moments = [Moment(*row) for row in rows]
        self._moments.update((moment.t, moment) for moment in moments)
        return moments
