"""A Design is a column of Table 1: Sampler, Preconditioning, Objective. The four presets, and Table 1 printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from . import formulation, solvers, timesteps
from . import objective as training
from . import preconditioning as networks
from .citations import bibtex
from .component import Component, Value
from .errors import unknown
from .objective import Objective
from .preconditioning import Preconditioning
from .sampler import Sampler


class Design(Value):
    """Every choice of a diffusion model. `print(design)` is its column of Table 1.

    `replace` takes the elements themselves (`solver=`, `steps=`, `noise=`, ...) as well as the three records.
    """

    sampler: Sampler = Sampler()
    preconditioning: Preconditioning = networks.EDM()
    objective: Objective = Objective()
    name: str = ""

    def replace(self, **elements: Any) -> Design:
        """A copy with some elements replaced, wherever they sit. Raises ValueError for an unknown element."""
        own = {f.name for f in fields(self)}
        changed: dict[str, Any] = {k: v for k, v in elements.items() if k in own}
        for record in ("sampler", "objective"):
            value = changed.get(record, getattr(self, record))
            inner = {f.name for f in fields(value)}
            changed[record] = value.replace(**{k: v for k, v in elements.items() if k in inner})
            own |= inner
        for name in elements:
            if name not in own:
                raise ValueError(unknown("element of a design", name, own))
        design: Design = super().replace(**changed)
        if self.name and "name" not in elements and design != self:
            design = design.replace(name=f"{self.name.removesuffix(' (modified)')} (modified)")
        return design

    def with_sigma_data(self, sigma_data: float) -> Design:
        """The design with sigma_data, the standard deviation of the data, wherever an element has it."""
        elements: dict[str, Component] = {
            "preconditioning": self.preconditioning,
            "weighting": self.objective.weighting,
        }
        changed = {
            name: element.replace(sigma_data=sigma_data)
            for name, element in elements.items()
            if hasattr(element, "sigma_data")
        }
        return self.replace(**changed, name=self.name)

    @property
    def sigma_data(self) -> float | None:
        """The standard deviation of the data that the preconditioning assumes; None when it assumes none."""
        return getattr(self.preconditioning, "sigma_data", None)

    def components(self) -> dict[str, Component]:
        """The elements by role name."""
        found: dict[str, Component] = {}
        for record in (self.sampler, self.objective):
            values = {f.name: getattr(record, f.name) for f in fields(record)}
            found |= {name: value for name, value in values.items() if isinstance(value, Component)}
        return found | {"preconditioning": self.preconditioning}

    def __str__(self) -> str:
        return compare_designs(self)


VP = Design(
    name="VP",
    sampler=Sampler(
        schedule=formulation.VP(),
        scaling=formulation.VariancePreserving(),
        timesteps=timesteps.VP(),
        solver=solvers.Euler(),
    ),
    preconditioning=networks.VP(),
    objective=Objective(noise=training.VPUniform(), weighting=training.InverseVariance()),
)
VE = Design(
    name="VE",
    sampler=Sampler(schedule=formulation.VE(), timesteps=timesteps.VE(), solver=solvers.Euler()),
    preconditioning=networks.VE(),
    objective=Objective(noise=training.LogUniform(), weighting=training.InverseVariance()),
)
IDDPM = Design(
    name="iDDPM + DDIM",
    sampler=Sampler(timesteps=timesteps.IDDPM(), solver=solvers.Euler()),
    preconditioning=networks.IDDPM(),
    objective=Objective(noise=training.IDDPM(), weighting=training.InverseVariance()),
)
EDM = Design(name="EDM")

PRESETS = {"vp": VP, "ve": VE, "iddpm": IDDPM, "edm": EDM}

# Table 1, row by row: section, name, and the cell of a design.
_ROWS: tuple[tuple[str, str, Callable[[Design], str]], ...] = (
    ("Sampling", "ODE solver", lambda d: _formula(d.sampler.solver)),
    ("", "time steps", lambda d: _formula(d.sampler.timesteps)),
    ("", "schedule σ(t)", lambda d: _formula(d.sampler.schedule)),
    ("", "scaling s(t)", lambda d: _formula(d.sampler.scaling)),
    ("", "stochasticity", lambda d: _formula(d.sampler.stochasticity)),
    ("Network and", "skip scaling c_skip", lambda d: d.preconditioning.formula_skip),
    ("preconditioning", "output scaling c_out", lambda d: d.preconditioning.formula_out),
    ("", "input scaling c_in", lambda d: d.preconditioning.formula_in),
    ("", "noise cond. c_noise", lambda d: d.preconditioning.formula_noise),
    ("Training", "noise distribution", lambda d: _formula(d.objective.noise)),
    ("", "loss weighting λ(σ)", lambda d: _formula(d.objective.weighting)),
    ("Parameters", "", lambda d: _parameters(d)),
)


def compare_designs(*designs: Design) -> str:
    """Designs side by side, as Table 1 of the EDM paper: `print(compare_designs(VP, VE, IDDPM, EDM))`."""
    import io

    from rich.console import Console
    from rich.table import Table

    table = Table(title="The design space (Karras et al. 2022, Table 1)" if len(designs) > 1 else None)
    table.add_column("")
    table.add_column("")
    for number, design in enumerate(designs, 1):
        table.add_column(design.name or f"design {number}", overflow="fold", max_width=27)
    for section, name, cell in _ROWS:
        if section and section != "preconditioning" and table.row_count:
            table.add_section()
        table.add_row(section, name, *(cell(design) for design in designs))
    out = io.StringIO()
    Console(
        file=out, width=48 + 31 * len(designs), color_system=None, legacy_windows=False, highlight=False, markup=False
    ).print(table)
    return out.getvalue().rstrip()


def citation(design: Design | Sampler) -> str:
    """BibTeX of exactly the papers that a design's elements come from."""
    design = Design(sampler=design) if isinstance(design, Sampler) else design
    return bibtex(key for component in design.components().values() for key in component.references)


def _formula(component: Component) -> str:
    return component.formula or component.kind


def _parameters(design: Design) -> str:
    """All parameters of a design, each once: what several elements share is listed where it comes first."""
    seen: dict[str, str] = {}
    low, high = design.sampler.timesteps.range()
    sampler = design.sampler
    seen["steps"] = str(sampler.steps)
    seen["sigma_min"] = f"{sampler.sigma_min if sampler.sigma_min is not None else low:.5g}"
    seen["sigma_max"] = f"{sampler.sigma_max if sampler.sigma_max is not None else high:.5g}"
    for role, component in design.components().items():
        for f in fields(component):
            value = getattr(component, f.name)
            text = f"{value:.5g}" if isinstance(value, float) else str(value)
            if seen.get(f.name, text) == text:
                seen[f.name] = text
            else:
                seen[f"{role}.{f.name}"] = text
    return "\n".join(f"{name} = {text}" for name, text in seen.items())
