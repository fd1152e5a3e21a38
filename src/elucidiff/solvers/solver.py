"""The two roles of a sampling step: the solver of the ODE and the noise around it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..component import Component
from .run import Run


class Solver(Component):
    """A step of a numerical method for Eq. 4. A new solver defines `step`; multistep ones read `run.past`."""

    role: ClassVar[str] = "solver"
    memory: ClassVar[int] = 0  # how many past steps `run.past` keeps
    order: ClassVar[int] = 1  # of convergence, in the number of steps
    draws: ClassVar[bool] = False  # whether it draws noise and so needs seeds
    nodes: ClassVar[tuple[float, ...]] = ()  # fractions of a step at which it evaluates; for speed only
    adaptive: ClassVar[bool] = False  # whether its path depends on x: then each sample runs alone, for its own sake

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        """The state at time t_next given x (B, *) at time t > t_next."""
        raise NotImplementedError(f"{type(self).__name__} must define step(run, x, t, t_next)")


class Stochasticity(Component):
    """What is done with noise before, within and after a solver's step; nothing by default."""

    role: ClassVar[str] = "stochasticity"
    draws: ClassVar[bool] = False  # whether it needs seeds

    def lift(self, run: Run, x: Tensor, t: float) -> tuple[Tensor, float]:
        """The state and time from which the solver steps."""
        return x, t

    def visits(self, sigmas: list[float]) -> list[float]:
        """Noise levels it will visit beside the listed ones; for speed only, so that they are computed in one go."""
        return []

    def aim(self, run: Run, t: float, t_next: float) -> float:
        """The time to which the solver steps."""
        return t_next

    def drop(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        """The state at t_next, given the solver's result at the time it aimed at."""
        return x
