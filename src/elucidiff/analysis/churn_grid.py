"""Settings of Algorithm 2's stochasticity to try: one parameter alone, several jointly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import product

from ..component import Value, require
from ..sampler import Sampler
from ..solvers import Churn, Deterministic

OFF = Churn(S_churn=0.0)
"""Nothing on: S_churn = 0, S_min = 0, S_max = infinity, S_noise = 1."""

CAP = math.sqrt(2) - 1  # of gamma (Algorithm 2): S_churn above CAP times the steps changes nothing
FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


class ChurnGrid(Value):
    """The values that a search tries for each parameter; "off" (0, 0, infinity, 1) is always among them."""

    S_churn: tuple[float, ...]
    S_min: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    S_max: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
    S_noise: tuple[float, ...] = (1.001, 1.003, 1.005, 1.007, 1.01)

    def validate(self) -> None:
        """Raise ValueError for values that Algorithm 2 does not take, or a grid without any S_churn above 0."""
        for name in NAMES:
            for value in getattr(self, name):
                OFF.replace(**{name: value})  # raises for a value out of range
        require(any(c > 0 for c in self.S_churn), f"S_churn: got {self.S_churn}; expected a value above 0 to try")

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def for_steps(cls, steps: int, **values: Sequence[float]) -> ChurnGrid:
        """The default grid for a number of steps, some parameters replaced.

        S_churn is spread over what has an effect: gamma = min(S_churn / N, sqrt(2) - 1) saturates at
        S_churn = 0.41 N, which is 7.5 for 18 steps, 106 for the 256 steps of the paper's grid.
        """
        churn = tuple(round(CAP * steps * f, 3) for f in FRACTIONS)
        return cls(**({"S_churn": churn} | {name: tuple(v) for name, v in values.items()}))

    def values(self, name: str) -> tuple[float, ...]:
        """All values of a parameter with "off", in rising order."""
        return tuple(sorted({*getattr(self, name), getattr(OFF, name)}))


NAMES = ChurnGrid.parameters()

PAPER = ChurnGrid(
    S_churn=tuple(range(10, 101, 10)),
    S_min=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    S_max=(0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 80.0),
    S_noise=tuple(1 + k / 1000 for k in range(1, 11)),
)
"""The grid of the EDM paper, Table 5, meant for some hundreds of steps."""


def alone(grid: ChurnGrid, name: str, around: Churn = OFF) -> list[Churn]:
    """One parameter through all its values, the others as they are; settings with S_min > S_max are left out."""
    return combined({name: grid.values(name)}, around)


def jointly(
    grid: ChurnGrid, around: Churn = OFF, names: Sequence[str] = NAMES, reach: int | None = None
) -> list[Churn]:
    """All combinations of the values of several parameters; within `reach` positions of those of `around`, if given."""
    lists = {name: grid.values(name) for name in names}
    if reach is not None:
        lists = {name: _near(values, getattr(around, name), reach) for name, values in lists.items()}
    return combined(lists, around)


def combined(lists: Mapping[str, Iterable[float]], around: Churn = OFF) -> list[Churn]:
    """Every combination of the listed values, the other parameters as they are, where S_min <= S_max."""
    settings = (dict(zip(lists, chosen, strict=True)) for chosen in product(*lists.values()))
    bands = {"S_min": around.S_min, "S_max": around.S_max}
    return [around.replace(**s) for s in settings if (bands | s)["S_min"] <= (bands | s)["S_max"]]


def _near(values: tuple[float, ...], middle: float, reach: int) -> tuple[float, ...]:
    """The part of rising values around one: the nearest, and `reach` more on either side."""
    at = values.index(middle) if middle in values else min(range(len(values)), key=lambda i: abs(values[i] - middle))
    return values[max(0, at - reach) : at + reach + 1]


def churn_samplers(base: Sampler, settings: Iterable[Churn]) -> dict[str, Sampler]:
    """The sampler with each setting, by a name such as "S_churn=4 S_max=50"; all with S_churn = 0 are one."""
    return {churn_name(churn): with_churn(base, churn) for churn in settings}


def churn_name(churn: Churn) -> str:
    """What differs from "off", as text."""
    if churn.S_churn == 0:
        return "deterministic"
    return " ".join(f"{n}={getattr(churn, n):.12g}" for n in NAMES if getattr(churn, n) != getattr(OFF, n))


def with_churn(base: Sampler, churn: Churn) -> Sampler:
    """The sampler with this stochasticity; without any for S_churn = 0, which is the same samples."""
    return base.replace(stochasticity=churn if churn.S_churn else Deterministic())
