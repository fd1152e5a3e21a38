"""Tables and pictures of `elucidiff compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ..analysis import Comparison, Point, Spread, StochasticitySearch

LABELS = {
    "fd": "Fréchet distance (lower is better)",
    "kd": "kernel distance (lower is better)",
    "agreement": "class agreement (higher is better)",
    "is": "class score, IS (higher is better)",
    "precision": "precision (higher is better)",
    "recall": "recall (higher is better)",
    "density": "density (higher is better)",
    "coverage": "coverage (higher is better)",
    "swd": "sliced Wasserstein distance (lower is better)",
    "energy": "energy distance (lower is better)",
    "mmd": "squared MMD, Gaussian kernel (lower is better)",
    "nearest": "memorised samples (0: none, 1: all; lower is better)",
}


def features_name(facts: Mapping[str, Any]) -> str:
    """The extractor of a measurement; with the data and the hash of its weights where the user trained it."""
    features = facts["features"]
    own = [features["data"], features["sha256"][:8]] if "sha256" in features else []
    return " ".join([features["kind"], *own])


def print_comparison(found: Comparison) -> None:
    """A table for each metric: samplers by budgets, the best of a column bold, real data below."""
    from rich.table import Table

    console, facts = _console(), found.facts
    rows, own_cost = found.rows(), any(point.budget is None for point in found.points)
    for metric, real in found.real.items():
        table = Table(
            title=f"{LABELS[metric]}: {facts['repeats']} x {facts['num']} samples, {facts['n_reference']} held-out of "
            f"{facts['data']['name']}, features {features_name(facts)}",
            caption=f"real data at the same size: {number(real)}; bold or *: best of its column; "
            "(n): evaluations made where the budget cannot be met exactly",
        )
        table.add_column("sampler", no_wrap=True)
        columns: list[int | None] = [*found.budgets, *([None] if own_cost else [])]
        for budget in columns:
            table.add_column("own cost" if budget is None else f"NFE {budget}", justify="right", no_wrap=True)
        wide = console.width >= 24 + 15 * len(columns)
        for points in rows.values():
            by_budget = {point.budget: point for point in points}
            texts = [_cell(found, by_budget.get(budget), metric, wide, console.is_terminal) for budget in columns]
            table.add_row(_title(found, points[0]), *texts)
        console.print(table)


def _cell(found: Comparison, point: Point | None, metric: str, wide: bool, styled: bool) -> str:
    if point is None:
        return ""
    spread = point.scores[metric]
    text = number(spread.mean)
    if point.nfe != point.budget:
        text += f" ({point.nfe})"
    if point.budget is not None and found.best(metric, point.budget) is point:
        text = f"[bold]{text}[/bold]" if styled else f"*{text}"
    if spread.std is not None:
        text += (" " if wide else "\n") + f"±{number(spread.std, 2)}"
    return text


def print_search(search: StochasticitySearch) -> None:
    """The ablation as a table: what was chosen, its score on fresh seeds, the gain over the deterministic sampler."""
    from rich.table import Table

    label = LABELS[search.metric]
    table = Table(
        title=f"{search.model}, {search.sampler}, NFE {search.nfe}: {label}, "
        f"{search.facts['repeats']} x {search.facts['num']} samples, features {features_name(search.facts)}",
        caption=f"real data at the same size: {number(search.real)}; best of: settings tried; chosen: its score on the "
        "seeds it was chosen on; fresh: on others; gain over deterministic, on the same seeds",
    )
    for column in ("", "setting", "best of", "chosen", "fresh", "gain", "beyond spread"):
        table.add_column(column, justify="left" if column in ("", "setting") else "right")
    for stage in search.stages:
        first = stage is search.stages[0]
        beyond = "" if first or stage.exceeds_spread is None else "yes" if stage.exceeds_spread else "no"
        table.add_row(
            stage.name,
            stage.setting,
            str(stage.tried),
            number(stage.selected),
            with_spread(stage.fresh),
            "" if first else with_spread(stage.gain),
            beyond,
        )
    _console().print(table)


def _console() -> Console:
    """A console that does not break lines where nobody's window is too narrow for them."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits; a dash for None."""
    return "–" if value is None else f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def with_spread(spread: Spread) -> str:
    """Mean and standard deviation."""
    return number(spread.mean) + ("" if spread.std is None else f" ±{number(spread.std, 2)}")


def comparison_picture(found: Comparison) -> bytes:
    """The curves of all samplers, a panel for each metric."""
    from ..report.quality import Curve, Line, quality_plot

    panels, lines = {}, {}
    for metric, real in found.real.items():
        panels[LABELS[metric]] = [
            Curve(
                _title(found, points[0]),
                [p.nfe for p in points],
                [p.scores[metric].mean for p in points],
                [p.scores[metric].std for p in points],
            )
            for points in found.rows().values()
        ]
        lines[LABELS[metric]] = [] if real is None else [Line("real against real", real)]
    ticks = sorted({*found.budgets, *(point.nfe for point in found.points if point.budget is None)})
    return quality_plot(panels, lines, ticks=ticks if len(ticks) <= 14 else None)


def search_picture(found: Sequence[StochasticitySearch]) -> bytes:
    """The score over S_churn, a panel for each search, with the deterministic sampler and real data as lines."""
    from ..report.quality import Curve, Line, quality_plot

    panels, lines = {}, {}
    for search in found:
        title = f"{search.model}, {search.sampler}, NFE {search.nfe}\n{LABELS[search.metric]}"
        panels[title] = [
            Curve(name, [x for x, _ in curve], [s.mean for _, s in curve], [s.std for _, s in curve])
            for name, curve in search.curves.items()
        ]
        known = {"real against real": search.real, "deterministic": search.stages[0].selected}
        lines[title] = [Line(text, value) for text, value in known.items() if value is not None]
    return quality_plot(panels, lines, xlabel="S_churn", logx=False)


def _title(found: Comparison, point: Point) -> str:
    """The name of a row: the model's too, where there are several."""
    return f"{point.model}: {point.name}" if len(found.facts["models"]) > 1 else point.name
