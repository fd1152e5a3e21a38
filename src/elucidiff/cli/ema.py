"""`elucidiff ema`: score models of many averaging lengths, reconstructed from one run, and keep the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import show
from .compare_show import LABELS, features_name, number, with_spread
from .options import (
    METRICS_HELP,
    DataArg,
    DeviceOption,
    FeaturesOption,
    JsonOption,
    SamplerOption,
    SetOption,
    StepsOption,
    check_resumable,
    checked_device,
    chosen_features,
    read_data,
)

if TYPE_CHECKING:
    from ..sampler import Sampler
    from ..training import Sweep, Width

STORE = "ema.jsonl"


def ema(
    run: Annotated[Path, typer.Argument(help="Run directory, trained with --set ema=power.", show_default=False)],
    data: DataArg,
    widths: Annotated[
        str, typer.Option("--widths", help="Relative widths sigma_rel of the averages, up to 0.2887.")
    ] = "0.03,0.05,0.075,0.10,0.125,0.15,0.20,0.25",
    metrics: Annotated[str, typer.Option("--metrics", help=METRICS_HELP + " The first chooses.")] = "fd",
    features: FeaturesOption = None,
    num: Annotated[int, typer.Option("--num", min=4, help="Samples a repeat.")] = 500,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Repeats, each with seeds of its own.")] = 1,
    at: Annotated[int | None, typer.Option("--at", min=1, help="Images seen. Default: at the end of the run.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for numbers, picture and store; what is stored is kept.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="New model directory for the best width.")] = None,
    heldout: Annotated[float, typer.Option("--heldout", help="The part of the data that is the reference.")] = 0.5,
    first_seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds are this and the following ones.")] = 0,
    sampler: SamplerOption = "edm",
    steps: StepsOption = None,
    settings: SetOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "--batch", min=1, help="Samples at a time.")] = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Find the best length of weight averaging after training: reconstruct, sample and score many, beside real data.

    A run keeps two averages when trained with --set ema=power; any other width follows from its snapshots, the better
    the more there are. With --out a stopped sweep goes on where it was.

    Example: elucidiff train digits --out runs/power --set ema=power snapshots=16
    Example: elucidiff ema runs/power digits --widths 0.05,0.10,0.15,0.20 --out swept --save models/best
    """
    from ..files import refuse_existing
    from ..progress import bar
    from ..training import sweep

    asked, names = _numbers(widths), [name.strip() for name in metrics.split(",")]
    if save is not None:
        refuse_existing(save)
    if out is not None:
        check_resumable(out, STORE)
    chosen = _sampler(run, sampler, settings, steps)
    with bar("sweeping") as report:
        found = sweep(
            run,
            read_data(data),
            asked,
            at=at,
            sampler=chosen,
            metrics=names,
            num=num,
            repeats=repeat,
            first_seed=first_seed,
            heldout=heldout,
            batch_size=batch_size,
            device=checked_device(device),
            extractor=chosen_features(features),
            store=None if out is None else out / STORE,
            progress=report,
        )
    best = found.best(next(iter(found.real)))
    if out is not None:
        _write(out, found)
    if save is not None:
        _save(run, best, at, save)
    if as_json:
        show.as_json(found.to_dict())
        return
    _print(found, best)
    if out is not None:
        print(f"numbers: {out / 'ema.json'}, picture: {out / 'ema.png'}")
    if save is not None:
        print(f"the best model: {save}")


def _numbers(text: str) -> list[float]:
    """Widths separated by commas. Raises ValueError saying what good ones look like."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--widths: cannot read {text!r}; expected numbers such as 0.05,0.10,0.15") from None


def _sampler(run: Path, sampler: str, settings: list[str] | None, steps: int | None) -> Sampler:
    """The sampler of the options; the newest snapshot says what `model` means."""
    from ..training.posthoc import stored_averages
    from .options import chosen_sampler, load_model

    return chosen_sampler(load_model(str(stored_averages(run)[-1].folder), "cpu"), sampler, settings, steps)


def _write(out: Path, found: Sweep) -> None:
    from ..files import write_atomically

    write_atomically(out / "ema.json", (json.dumps(found.to_dict(), indent=1) + "\n").encode())
    write_atomically(out / "ema.png", sweep_picture(found))


def _save(run: Path, best: Width | None, at: int | None, folder: Path) -> None:
    from ..models import save
    from ..training import reconstruct

    if best is None:
        raise ValueError("--save: no width has a score, so that none is the best")
    save(reconstruct(run, best.sigma_rel, at), folder)


def _print(found: Sweep, best: Width | None) -> None:
    facts = found.facts
    header = ["sigma_rel", *(LABELS[metric] for metric in found.real), "minus the best", "profile error", ""]
    first = next(iter(found.real))
    rows = [
        [
            f"{width.sigma_rel:g}",
            *(with_spread(width.scores[metric]) for metric in found.real),
            "" if width is best else with_spread(found.behind(width, first)),
            "stored" if not width.error else number(width.error, 2),
            "best" if width is best else "",
        ]
        for width in found.widths
    ]
    rows.append(["real data", *(number(value) for value in found.real.values()), "", "", ""])
    title = (
        f"averages ending at {facts['at']:,.0f} images, from {len(facts['stored'])} stored; {facts['repeats']} x "
        f"{facts['num']} samples of NFE {max(w.nfe for w in found.widths)}, {facts['n_reference']} held-out of "
        f"{facts['data']['name']}, features {features_name(facts)}"
    )
    show.table(title, header, rows, words=[""])


def sweep_picture(found: Sweep) -> bytes:
    """The score over the width of the average, a panel for each metric, with real data as a line."""
    from ..report.quality import Curve, Line, quality_plot

    x, panels, lines = [width.sigma_rel for width in found.widths], {}, {}
    for metric, real in found.real.items():
        scores = [width.scores[metric] for width in found.widths]
        name = f"averages ending at {found.facts['at']:,.0f} images"
        panels[LABELS[metric]] = [Curve(name, x, [s.mean for s in scores], [s.std for s in scores])]
        if (best := found.best(metric)) is not None:
            mean = best.scores[metric].mean
            panels[LABELS[metric]].append(Curve("best", [best.sigma_rel], [mean], [None]))
        lines[LABELS[metric]] = [] if real is None else [Line("real against real", real)]
    return quality_plot(panels, lines, xlabel="relative width of the average, σ_rel", logx=False)
