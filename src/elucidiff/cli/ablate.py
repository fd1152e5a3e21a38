"""`elucidiff ablate`: Table 2 of the EDM paper on one's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import show
from .compare_show import LABELS, number, with_spread
from .options import (
    METRICS_HELP,
    DataArg,
    DeviceOption,
    FeaturesOption,
    JsonOption,
    RecipeOption,
    SetOption,
    TimeLimitOption,
    check_resumable,
    chosen_features,
    chosen_recipe,
    read_data,
)

if TYPE_CHECKING:
    from ..training import Ablation

STORE = "scores.jsonl"


def ablate(
    data: DataArg,
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, scores, table and picture.", show_default=False)],
    configs: Annotated[str, typer.Option("--configs", help="Which of A, B, C, D, E, F.")] = "A,B,C,D,E,F",
    baseline: Annotated[str, typer.Option("--baseline", help="vp or ve: what A starts from.")] = "vp",
    runs: Annotated[int, typer.Option("--runs", min=1, help="Training runs of each, with seeds 0, 1, ...")] = 3,
    recipe: RecipeOption = None,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Images each run is trained on.")] = None,
    settings: SetOption = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="DATA", help="Data to compare with. Default: a part kept back.")
    ] = None,
    heldout: Annotated[float, typer.Option("--heldout", help="The part that is kept back without --reference.")] = 0.5,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help=METRICS_HELP + " Default: fd; and agreement, if it can be.", show_default=False),
    ] = None,
    features: FeaturesOption = None,
    num: Annotated[int, typer.Option("--num", min=4, help="Samples of each model.")] = 1000,
    device: DeviceOption = "cpu",
    time_limit: TimeLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train configurations A to F of the paper on your data, each adding one change, and score them: Table 2.

    Stopped by a signal or --time-limit while it trains, it saves the state and exits with code 85; the same command
    again goes on, to the same numbers.

    Example: elucidiff ablate digits --images 100000 --out ablation
    Example: elucidiff ablate mnist-train.zip --reference mnist-test.zip --recipe mnist --configs A,E --out ablation
    """
    from ..progress import bar
    from ..training import ablate as run_all
    from . import parse

    check_resumable(out, STORE)
    dataset = read_data(data)
    base = chosen_recipe(recipe).replace(data=data, device=device, heldout=0.0 if reference else heldout)
    base = parse.apply_training_settings(
        base if images is None else base.replace(images=images), settings or [], dataset
    )
    with bar("ablation") as report:
        found = run_all(
            dataset,
            base,
            out,
            configs=[letter.strip().upper() for letter in configs.split(",")],
            baseline=baseline,
            seeds=range(runs),
            metrics=None if metrics is None else [metric.strip() for metric in metrics.split(",")],
            num=num,
            reference=None if reference is None else read_data(reference),
            extractor=chosen_features(features),
            progress=report,
            time_limit=None if time_limit is None else parse.duration(time_limit),
        )
    _write(out, found)
    if as_json:
        show.as_json(found.to_dict())
        return
    _print(found)
    print(f"numbers: {out / 'ablation.json'}, picture: {out / 'ablation.png'}, models: {out}")


def _write(out: Path, found: Ablation) -> None:
    from ..files import write_atomically
    from ..report.ablation import ablation_plot

    write_atomically(out / "ablation.json", (json.dumps(found.to_dict(), indent=1) + "\n").encode())
    panels = {
        LABELS[metric]: {cell.letter: cell.scores[metric].values for cell in found.cells} for metric in found.real
    }
    real = {LABELS[metric]: value for metric, value in found.real.items()}
    text = (
        f"configuration ({found.facts['baseline'].upper()} baseline), {found.facts['recipe']['images']:,} images each"
    )
    write_atomically(out / "ablation.png", ablation_plot(panels, real, text))


def _print(found: Ablation) -> None:
    facts = found.facts
    rows = [
        [cell.letter, cell.change, f"{cell.parameters:,}", *(with_spread(cell.scores[metric]) for metric in found.real)]
        for cell in found.cells
    ]
    rows.append(["", "real data at the same size", "", *(number(value) for value in found.real.values())])
    n = len(found.cells[0].runs)
    runs = "1 run" if n == 1 else f"{n} runs"
    show.table(
        f"{facts['baseline'].upper()} baseline, {facts['recipe']['images']:,} images, {runs} each, "
        f"{facts['num']} samples, {facts['n_reference']} for reference",
        ["", "change", "parameters", *(LABELS[metric] for metric in found.real)],
        rows,
        words=("change",),
    )
