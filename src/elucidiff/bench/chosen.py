"""The settings that the search on learning noise chose. The test noise had no part in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .settings import named
from .solvers import Setting

Levels = Mapping[str, Mapping[int, str]]


class Default(NamedTuple):
    """One setting for every problem and budget: solver, time steps, end; with "fitted" steps, what the fit gave."""

    name: str
    levels: Levels = {}

    def setting(self, problem: str, nfe: int, fit: bool = False) -> Setting:
        """The setting for a problem and a budget; `fit` ignores the stored levels."""
        stored = self.levels.get(problem, {}).get(nfe)
        if fit or stored is None:
            return named(self.name)
        solver, _, end = self.name.split(", ")
        return named(f"{solver}, levels {stored}, {end}").renamed(self.name, "T1")


BEST: Levels = {}
DEFAULTS: tuple[Default, ...] = (Default("ipndm-4, rho 7, to 0.002"),)
DEFAULT = DEFAULTS[0].name
