"""Strings of `elucidiff compare` as values: models, samplers with settings, the values of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..sampler import Sampler


def model_specs(text: str) -> dict[str, str]:
    """Models by name, from "runs/a,NAME=runs/b"; without a name the folder's own. Raises ValueError for one twice."""
    found: dict[str, str] = {}
    for part in [text] if Path(text).exists() else split_outside(text, ","):
        name, equals, path = part.partition("=")
        if not equals or Path(part).exists():
            name, path = Path(part).name, part
        if not path or name in found:
            raise ValueError(f"MODEL: {part!r} in {text!r} has no name of its own; write NAME=MODEL")
        found[name] = path
    return found


def sampler_specs(text: str) -> dict[str, Sampler | None]:
    """Samplers by name, from "edm,own,fast=dpmpp_2m:timesteps=logsnr"; None for the model's own.

    Raises ValueError for unknown names and settings, and for a name twice.
    """
    found: dict[str, Sampler | None] = {}
    for part in split_outside(text, ","):
        base, *settings = split_outside(part, ":")
        label, equals, rest = base.partition("=")
        name, base = (label, rest) if equals else (part, base)
        if not base or name in found:
            raise ValueError(f"--samplers: {part!r} is {'twice' if base else 'empty'} in {text!r}")
        found[name] = _sampler(base, settings)
    return found


def _sampler(base: str, settings: Sequence[str]) -> Sampler | None:
    from ..design import EDM, PRESETS
    from ..errors import unknown
    from ..solvers import Solver
    from . import parse

    kinds = Solver.kinds()
    if base in ("own", "model"):
        if settings:
            raise ValueError(f"--samplers: {base} is taken as the model records it; settings need a named sampler")
        return None
    if base in PRESETS:
        sampler = PRESETS[base].sampler
    elif base in kinds:
        sampler = EDM.sampler.replace(solver=kinds[base]())
    elif base.endswith(".json"):
        sampler = parse.sampler_file(Path(base))
    else:
        raise ValueError(unknown("sampler", base, [*PRESETS, *kinds, "own"]) + " or a .json file")
    try:
        return parse.apply_settings(sampler, settings)
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("--set", f"--samplers {base}:", 1)) from error


def grid_values(text: str) -> tuple[str, list[float]]:
    """The values of one parameter, from "S_churn=1,2,4". Raises ValueError saying what is wrong."""
    from ..analysis import ChurnGrid
    from ..errors import unknown

    name, _, listed = text.partition("=")
    known = ChurnGrid.parameters()
    if name not in known:
        raise ValueError(f"--grid: {unknown('parameter', name, known)}")
    try:
        return name, [float(value) for value in listed.split(",")]
    except ValueError:
        raise ValueError(f"--grid: cannot read {text!r}; expected numbers such as {name}=1,2,4") from None


def split_outside(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that stand outside of brackets and quotes, stripped."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in "[{") - (letter in "]}")
        if letter == separator and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
