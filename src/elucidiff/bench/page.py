"""The solver benchmark as people read it: tables in Markdown, a picture, the facts of the run."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..files import write_atomically
from ..report import pictures
from .solvers import PEERS, Row, best, scores

BEGIN, END = "<!-- solvers: written by `elucidiff bench solvers` -->", "<!-- solvers: end -->"
PICTURE = "benchmarks-solvers.png"
HEUN_NAME = "heun, rho 7, 0.002 to 0"


def facts() -> dict[str, str]:
    """Versions, machine and date."""
    return {
        "elucidiff": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def markdown(rows: Sequence[Row], chosen: Mapping[str, Mapping[int, str]], notes: Sequence[str] = ()) -> str:
    """The section of the page: Q of each default, the best of ours beside the best peer, what else was measured."""
    parts = [
        "\n".join(f"- {name}: {value}" for name, value in facts().items()),
        f"![Error over the number of network evaluations]({PICTURE})",
        "### One setting for everything",
        _score_table(rows),
        "### Best of ours beside the best fixed peer",
        "RMSE to the exact solution for the test noise; the setting was chosen on other noise. 'relative' is the RMSE "
        "over that of the samples; median and 90th percentile are of the samples' own RMSE.",
        *(_problem_table(rows, problem, chosen.get(problem, {})) for problem in PEERS),
        *notes,
    ]
    return "\n\n".join(part for part in parts if part)


def _score_table(rows: Sequence[Row]) -> str:
    short = {problem: problem.replace("gmm_cifar_", "") for problem in PEERS}
    lines = [["setting (solver, time steps, last step)", "track", "Q", "worst ratio", *short.values()]]
    for s in scores(rows):
        at = f"{s.worst:.2f} ({short[s.worst_at[0]]}, NFE {s.worst_at[1]})"
        lines.append([s.name, s.track, f"{s.Q:.3f}", at, *(f"{s.by_problem[p]:.2f}" for p in PEERS)])
    return _table(lines, left=(0, 1))


def _problem_table(rows: Sequence[Row], problem: str, chosen: Mapping[int, str]) -> str:
    peers = [r for r in rows if r.name.startswith("diffusers ")]
    head = ["NFE", "best peer", "best of ours", "ratio", "relative", "median", "90 %", "which"]
    lines = [[*head, *(["best of diffusers here"] if peers else [])]]
    for nfe in sorted({r.nfe for r in rows if r.problem == problem}):
        r = best([r for r in rows if r.name == chosen.get(nfe)], problem, nfe)
        if r is None:
            continue
        peer = PEERS[problem].get(36 if nfe == 35 else nfe)
        numbers = (peer, r.rmse, r.ratio, r.relative, r.median, r.p90)
        line = [str(nfe), *("" if v is None else f"{v:.3g}" for v in numbers), _short(r.name)]
        if peers:
            other = best(peers, problem, nfe)
            line.append(f"{other.rmse:.3g} ({other.name.removeprefix('diffusers ')})" if other else "")
        lines.append(line)
    return f"**{problem}**\n\n{_table(lines, left=(7, 8))}" if len(lines) > 1 else ""


def _short(name: str) -> str:
    """The name of a setting, a long list of levels by its first and last."""
    solver, steps, end = name.split(", ")
    levels = steps.split()
    if levels[0] != "levels" or len(levels) < 14:
        return name
    return f"{solver}, {len(levels) - 1} levels {' '.join(levels[1:4])} ... {levels[-1]}, {end}"


def _table(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    head, *body = lines
    rule = [":--" if i in left else "--:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))


def picture(rows: Sequence[Row], chosen: Mapping[str, Mapping[int, str]], default: str) -> bytes:
    """RMSE over NFE, a panel for each problem: the best peer, EDM's Heun, the best of ours and the default. PNG."""
    with pictures._quiet():
        return _picture(rows, chosen, default)


def _picture(rows: Sequence[Row], chosen: Mapping[str, Mapping[int, str]], default: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(9.6, 6.4))
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex=True).ravel()
    for panel, problem in zip(panels, PEERS, strict=True):
        mine = [r for r in rows if r.problem == problem]
        budgets = sorted({r.nfe for r in mine})
        ours = {r.nfe: r.rmse for n in budgets for r in mine if r.nfe == n and r.name == chosen[problem].get(n)}
        curves: dict[str, tuple[dict[int, float], str, str]] = {
            "best fixed peer": ({n: e for n, e in PEERS[problem].items() if n in budgets}, "#4D4D4D", "s"),
            "EDM Heun, ρ = 7": (_curve(mine, HEUN_NAME), "#E69F00", "^"),
            "best of ours": (ours, "#0072B2", "o"),
            "our default": (_curve(mine, default), "#009E73", "D"),
        }
        for label, (curve, colour, marker) in curves.items():
            panel.plot(list(curve), list(curve.values()), color=colour, marker=marker, label=label)
        pictures._log(panel, "x")
        pictures._log(panel, "y")
        panel.set_title(problem)
        shown = [n for n in budgets if n + 1 not in budgets or n < 20]  # 35 and 36 would overlap
        panel.set_xticks(shown, [str(n) for n in shown])
        panel.xaxis.set_minor_locator(NullLocator())
    for panel in panels[2:]:
        panel.set_xlabel("network evaluations")
    for panel in panels[::2]:
        panel.set_ylabel("RMSE to the exact solution")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return pictures._png(figure)


def _curve(rows: Iterable[Row], name: str) -> dict[int, float]:
    return {r.nfe: r.rmse for r in sorted(rows, key=lambda r: r.nfe) if r.name == name}


def as_data(rows: Sequence[Row], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Everything measured, as JSON data."""
    return {
        "facts": facts(),
        "scores": [{**s.__dict__, "by_problem": dict(s.by_problem)} for s in scores(rows)],
        "rows": [r.to_dict() for r in rows],
        "notes": list(notes),
    }


def write(folder: Path, section: str, png: bytes) -> Path:
    """Put the section into folder/benchmarks.md, between its two marks, and the picture beside it.

    What stands outside the marks is kept; without the marks the section is appended.
    """
    page = folder / "benchmarks.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Benchmarks\n\n## Solvers\n"
    marked = f"{BEGIN}\n\n{section}\n\n{END}"
    before, found, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if found else ""
    whole = f"{before}{marked}{after}" if found else f"{text.rstrip()}\n\n{marked}\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(page, whole.encode())
    write_atomically(folder / PICTURE, png)
    return page
