"""The fixed settings that the solver benchmark knows: solvers x time steps x where the last step ends.

A setting is named by its three parts, "dpmpp_2m, rho 7, to 0.002", and `named` makes it from the name. Time steps are a
rule ("rho 7"), a list ("levels 80 3 1 0.2", above 0), or "fitted": the list that serves the problem, solver and
budget at hand best on 64 teacher paths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .. import formulation, timesteps, tuning
from ..errors import unknown
from ..sampler import Sampler
from ..solvers import GaussianExponential, Solver
from ..timesteps import TimeSteps
from .fitting import fit
from .problems import SIGMA_MAX, SIGMA_MIN, Problem
from .solvers import Setting

RHOS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0)
LASTS = (0.005, 0.01, 0.02, 0.04, 0.08)
"""Levels above sigma_min from which a step to 0 may be tried."""

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "ab": tuple({"order": p} for p in (2, 3, 4)),
    "ipndm": tuple({"order": p} for p in (2, 3, 4)),
    "deis": tuple({"order": p} for p in (2, 3)),
    "unipc": tuple({"order": p, "B": B} for p in (1, 2, 3) for B in ("bh1", "bh2")),
    "dpmpp_3m": ({"corrected": False}, {"corrected": True}),
    "rk2": (),  # its members are kinds of their own
    "gaussian": (),  # knows the data: below
}
"""The parameters to try, by kind; other deterministic solvers run as they are."""

PAIRS = ("natural/natural", "residual/log", "slope/sigma", "residual/natural", "slope/log", "natural/log")
SHARES = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Parts of the data's variance that are taken as its Gaussian part."""


class SolverRule(NamedTuple):
    """A solver as a function of the problem, and the track that this makes it."""

    track: str
    make: Callable[[Problem], Solver]
    schedule: formulation.Schedule = formulation.EDM()


class StepsRule(NamedTuple):
    """Time steps as a function of the number of levels above 0 and of the problem, and the track that this makes it."""

    track: str
    make: Callable[[Problem, SolverRule, int, bool], TimeSteps]


class End(NamedTuple):
    """The last level above 0, and whether a step to 0 follows."""

    last: float
    to_zero: bool


class _Constant:
    """A rule that gives the same whatever it is asked for."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *_: Any) -> Any:
        return self.value


def _label(kind: str, parameters: Mapping[str, Any]) -> str:
    words = [f"-{v}" if k == "order" else f" {k}" if v is True else f" {v}" for k, v in parameters.items() if v]
    return kind + "".join(words)


@functools.lru_cache(maxsize=1)
def solver_rules() -> dict[str, SolverRule]:
    """Every deterministic solver of fixed steps, with each order and variant it offers, by name."""
    found: dict[str, SolverRule] = {}
    for kind, solver in Solver.kinds().items():
        if solver.draws or solver.adaptive:
            continue
        for parameters in VARIANTS.get(kind, ({},)):
            made = solver(**parameters)
            found[_label(kind, parameters)] = SolverRule("T0", _Constant(made))
            if kind == "deis":  # whose polynomials are in the time of the schedule
                name = _label(kind, parameters) + " in vp time"
                found[name] = SolverRule("T0", _Constant(made), formulation.VP())
    found.update(_data_aware())
    return found


def _data_aware() -> Iterator[tuple[str, SolverRule]]:
    for order in (1, 2, 3):
        for pair in PAIRS:
            for corrector in (False, True):
                quantity, variable = pair.split("/")
                options = {"order": order, "quantity": quantity, "variable": variable, "corrector": corrector}
                name = f"gaussian-{order} {pair}" + (" corrected" if corrector else "")
                for known in ("sigma_data", "spectrum"):
                    for share in SHARES:
                        make = functools.partial(_gaussian, options, known, share)
                        part = "" if share == 1 else f"{share:g} "
                        yield f"{name} {part}{known}", SolverRule("T1", make)
                make = functools.partial(_plain_gaussian, options)
                yield f"{name} at 0.5", SolverRule("T0", make)


def _plain_gaussian(options: dict[str, Any], _: Problem) -> Solver:
    return GaussianExponential(sigma_data=0.5, **options)


@functools.lru_cache(maxsize=512)
def _cached_gaussian(options: tuple[tuple[str, Any], ...], known: str, share: float, problem: Problem) -> Solver:
    statistics = problem.statistics
    mean = tuple(statistics.mean.tolist())
    parameters: dict[str, Any] = dict(options) | {"mean": mean, "sigma_data": statistics.sigma_data * share**0.5}
    if known == "spectrum":
        parameters["spectrum"] = tuple((share * statistics.variance).tolist())
    return GaussianExponential(**parameters)


def _gaussian(options: dict[str, Any], known: str, share: float, problem: Problem) -> Solver:
    return _cached_gaussian(tuple(options.items()), known, share, problem)


@functools.lru_cache(maxsize=1)
def steps_rules() -> dict[str, StepsRule]:
    """The time steps, by name."""
    plain: dict[str, TimeSteps] = {f"rho {rho:g}": timesteps.EDM(rho=rho) for rho in RHOS}
    plain["logsnr"] = timesteps.LogSNR()
    plain["vp"] = timesteps.VP()
    plain["quadratic vp"] = timesteps.Uniform(power=2.0)
    plain["cosine"] = timesteps.Cosine()
    plain["uniform"] = timesteps.Uniform(schedule=formulation.EDM())
    found = {name: StepsRule("T0", _Constant(rule)) for name, rule in plain.items()}
    for how in ("dynamic_programming", "equal_error"):
        found[how.replace("_", " ")] = StepsRule("T1", functools.partial(_tuned, how))
    found["fitted"] = StepsRule("T1", _fitted)
    return found


def ends() -> dict[str, End]:
    """Where the last step begins and ends, by name; "to 0" is for time steps that have a last level of their own."""
    found = {"to 0.002": End(SIGMA_MIN, False), "0.002 to 0": End(SIGMA_MIN, True), "to 0": End(SIGMA_MIN, True)}
    return found | {f"{last:g} to 0": End(last, True) for last in LASTS}


def named(name: str) -> Setting:
    """The setting of a name. Raises ValueError naming the nearest part that is known."""
    parts = name.split(", ")
    if len(parts) != 3:
        raise ValueError(f"setting: got {name!r}; expected solver, time steps and end, e.g. 'heun, rho 7, 0.002 to 0'")
    solver, steps, end = parts
    if solver not in solver_rules():
        raise ValueError(unknown("solver", solver, solver_rules()))
    if end not in ends():
        raise ValueError(unknown("end", end, ends()))
    return combined(name, solver_rules()[solver], steps_rule(steps), ends()[end])


def steps_rule(name: str) -> StepsRule:
    """The time steps of a name."""
    if name.startswith("levels "):
        listed = timesteps.Fixed(tuple(float(level) for level in name.split()[1:]))
        return StepsRule("T2", _Constant(listed))
    if name not in steps_rules():
        raise ValueError(unknown("time steps", name, [*steps_rules(), "levels 80 ..."]))
    return steps_rules()[name]


@functools.lru_cache(maxsize=256)
def _fitted(problem: Problem, solver: SolverRule, n: int, to_zero: bool) -> TimeSteps:
    """The levels fitted to the problem's 64 teacher paths; n counts the last one, 0.002, where no step to 0 follows."""
    made, end = solver.make(problem), () if to_zero else (SIGMA_MIN,)
    latents, at_sigma_min, at_zero = problem.teacher

    def sampler(levels: tuple[float, ...]) -> Sampler:
        rule = timesteps.Fixed((*levels, *end))
        return Sampler(schedule=solver.schedule, solver=made, timesteps=rule, steps=len(rule.sigmas), to_zero=to_zero)

    levels, _ = fit(problem.denoiser, sampler, n - len(end), latents, at_zero if to_zero else at_sigma_min)
    return timesteps.Fixed((*levels, *end))


@functools.lru_cache(maxsize=256)
def _tuned(how: str, problem: Problem, solver: SolverRule, n: int, to_zero: bool) -> TimeSteps:
    """The levels of the library's own tuning from 64 paths, by dynamic programming or equal errors."""
    sampler = Sampler(
        schedule=solver.schedule, solver=solver.make(problem), sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, to_zero=to_zero
    )
    tune = getattr(tuning, f"steps_by_{how}")
    return tune(problem.denoiser, sampler, n, seeds=range(64)).timesteps


def combined(name: str, solver: SolverRule, steps: StepsRule, end: End) -> Setting:
    """A setting of three parts; its track is the wider of theirs."""

    def sampler(problem: Problem, levels: int) -> Sampler:
        rule = steps.make(problem, solver, levels, end.to_zero)
        return Sampler(
            schedule=solver.schedule,
            solver=solver.make(problem),
            timesteps=rule,
            steps=levels,
            sigma_min=rule.range()[0] if isinstance(rule, timesteps.Fixed) else end.last,
            sigma_max=SIGMA_MAX,
            to_zero=end.to_zero,
        )

    return Setting(name, max(solver.track, steps.track), sampler)


def grid() -> list[str]:
    """The names of all settings without knowledge of the problem's paths."""
    rules = [name for name, rule in steps_rules().items() if rule.track == "T0"]
    return [f"{s}, {r}, {e}" for s in solver_rules() for r in rules for e in ends() if e != "to 0"]
