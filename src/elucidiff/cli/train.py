"""`elucidiff train`: a model of the user's data; what it would take (`--dry-run`), and what it says at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import show
from .options import DataArg, JsonOption, RecipeOption, SetOption, TimeLimitOption, chosen_recipe, read_data
from .plan import planned

if TYPE_CHECKING:
    from ..training import TrainConfig


def train(
    data: DataArg,
    out: Annotated[
        Path | None, typer.Option("--out", "--outdir", help="New run directory; needed unless --dry-run.")
    ] = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    images: Annotated[
        int | None, typer.Option("--images", help="How many images to train on, repeats included.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random. Default: 0.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps. Default: cpu.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take, after 20 steps: memory, time, disk.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; begin it where there is none.")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with another configuration than before.")
    ] = False,
    time_limit: TimeLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model on a data set; EDM's design, sigma_data measured, unless --set says otherwise.

    Stopped by a signal or --time-limit it saves its state and exits with code 85; --resume goes on, to the same bits.

    Within torchrun processes share each batch: torchrun --nproc-per-node 2 -m elucidiff train ... --set accumulate=2.

    Example: elucidiff train digits --out runs/digits --images 300000 --set batch=64 network.channels=16
    Example: elucidiff train digits --dry-run --set batch=256
    Example: elucidiff train digits --out runs/digits --resume --time-limit 1h
    Example: elucidiff train photos.zip --out runs/superres --set condition=lowres condition.factor=4
    """
    from ..training import train as train_model
    from . import parse

    if out is None and not dry_run:
        raise ValueError("--out: got no run directory; expected a new folder, or --dry-run to see what it would take")
    config = _base(recipe, out if resume else None).replace(data=data)
    reading = [s for s in settings or [] if s.partition("=")[0] in ("cache", "on_bad_data")]
    dataset = read_data(data, parse.apply_settings(config, reading))
    given = {"out": None if out is None else str(out), "seed": seed, "device": device}
    config = config.replace(**{name: value for name, value in given.items() if value is not None})
    if images is not None:
        config = config.replace(images=images)
    config = parse.apply_training_settings(config, settings or [], dataset)
    if dry_run:
        planned(config, dataset, out, as_json)
        return
    limit = None if time_limit is None else parse.duration(time_limit)
    run = train_model(config, data=dataset, progress=True, resume=resume, allow_changes=allow_changes, time_limit=limit)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started, the first speaks
        _print_end(run, config.steps * config.batch, machine=as_json)


def _base(recipe: str | None, run: Path | None) -> TrainConfig:
    """The configuration that settings change: a recipe, or that of a run that goes on, or the default."""
    from ..training import TrainConfig

    if recipe is None and run is not None and (run / "config.json").is_file():
        return TrainConfig.load(run / "config.json")
    return chosen_recipe(recipe)


def _print_end(run: Path, images: int, *, machine: bool) -> None:
    """Draw RUN/training.png, where Matplotlib is installed, and print what there is to see."""
    from ..training.watching.heldout import best

    picture, chosen = _picture(run), best(run)
    if machine:
        found = {} if chosen is None else {"best": {"snapshot": chosen["snapshot"], "heldout": chosen["heldout"]}}
        show.as_json({"run": str(run), "images": images} | found)
        return
    print(f"trained on {images:,} images: {run}")
    if chosen is not None:
        print(f"best snapshot: {run / 'snapshots' / chosen['snapshot']}, held-out loss {chosen['heldout']:.4g}")
    print(
        f"look: {'' if picture is None else f'{picture}, '}{run / 'samples' / 'training'}, tensorboard --logdir {run}"
    )
    print(f"next: elucidiff sample {run} --out samples")


def _picture(run: Path) -> Path | None:
    from ..errors import MissingExtraError
    from ..report.training import write_training_picture

    try:
        return write_training_picture(run)
    except MissingExtraError:
        return None
