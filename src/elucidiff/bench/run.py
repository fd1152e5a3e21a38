"""The benchmark of solvers from end to end: the chosen settings on the test noise, tables, picture, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..files import write_atomically
from ..progress import bar
from . import page
from .chosen import BEST, DEFAULT, DEFAULTS
from .peers import measure_installed
from .problems import Problem, load
from .settings import named
from .solvers import BUDGETS, Row, Setting, measure


def run_solvers(
    problems: Path,
    budgets: Sequence[int] = BUDGETS,
    *,
    out: Path | None = None,
    json_file: Path | None = None,
    fit: bool = False,
) -> str:
    """Measure the chosen settings and the peers that are installed; the tables as Markdown.

    problems: the folder of the data. out: a folder whose benchmarks.md gets the tables, with the picture beside it.
    fit: fit the time steps of the defaults anew instead of taking those of `chosen`.
    Raises FileNotFoundError where the data are missing.
    """
    found = load(problems)
    todo = [(p, s, n) for p in found.values() for n in budgets for s in _settings(p, n, fit)]
    rows: list[Row] = []
    with bar("measuring solvers") as report:
        for i, (problem, setting, nfe) in enumerate(todo):
            row = measure(problem, setting, nfe)
            rows += [row] if row else []
            report(i + 1, len(todo), f"{problem.name}, NFE {nfe}")
    others, absent = measure_installed(found.values(), budgets)
    rows += others
    text = page.markdown(rows, BEST, absent)
    if json_file:
        write_atomically(json_file, (json.dumps(page.as_data(rows, absent), indent=1) + "\n").encode())
    if out:
        page.write(out, text, page.picture(rows, BEST, DEFAULT))
    return text


def _settings(problem: Problem, nfe: int, fit: bool) -> Iterator[Setting]:
    """Everything that is measured on a problem at a budget, each setting once: the best, the defaults, EDM's Heun."""
    names = dict.fromkeys([BEST.get(problem.name, {}).get(nfe, page.HEUN_NAME), page.HEUN_NAME])
    for name in names:
        yield named(name)
    made = (default.setting(problem.name, nfe, fit) for default in DEFAULTS)
    yield from (setting for setting in made if setting is not None and setting.name not in names)
