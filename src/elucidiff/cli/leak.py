"""The command that tests whether augmentation leaks into samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import show
from .options import (
    BatchOption,
    DataArg,
    DeviceOption,
    JsonOption,
    ModelArg,
    SamplerOption,
    SetOption,
    StepsOption,
    chosen_sampler,
    load_model,
    read_data,
)

if TYPE_CHECKING:
    from ..analysis.leak import Leak


def leak(
    model: ModelArg,
    data: DataArg,
    augment: Annotated[
        str | None,
        typer.Option("--augment", help="edm, full or kinds: xflip,rotation. Default: the one it was trained with."),
    ] = None,
    num: Annotated[
        int, typer.Option("--num", min=4, help="How many samples; of plain and augmented data as many.")
    ] = 500,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the samples (and following), the data, the test.")] = 0,
    sampler: SamplerOption = "edm",
    steps: StepsOption = None,
    settings: SetOption = None,
    batch_size: BatchOption = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Test whether augmentation leaks: are samples without augment labels like the data, or like augmented data?

    Moments of single samples (where, how wide, how skewed) are compared by energy distance, with permutation tests.

    Example: elucidiff leak runs/digits digits --num 500
    """
    from ..analysis.leak import leak as measure
    from ..analysis.leak import trained_with
    from ..augment import named

    denoiser, dataset = load_model(model, device), read_data(data)
    pipeline = trained_with(denoiser) if augment is None else named(augment, dataset.shape)
    if pipeline is None:
        raise ValueError("leak: this model was trained without augmentation; say which one to look for: --augment edm")
    chosen = chosen_sampler(denoiser, sampler, settings, steps)
    found = measure(denoiser, dataset, chosen, pipeline, num=num, seed=seed, batch_size=batch_size, progress=True)
    if as_json:
        facts = {"model": model, "data": data, "augment": pipeline.to_dict(), "sampler": chosen.to_dict(), "seed": seed}
        show.as_json(facts | found.to_dict())
    else:
        _print(found)


def _print(found: Leak) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"squared energy distances of moments, {found.n} samples of each kind")
    for column in ("between", "distance", "p"):
        table.add_column(column, justify="left" if column == "between" else "right")
    table.add_row("samples and data", f"{found.samples_data:.4f}", f"{found.p_data:.3f}")
    table.add_row("samples and augmented data", f"{found.samples_augmented:.4f}", f"{found.p_augmented:.3f}")
    table.add_row("data and augmented data", f"{found.data_augmented:.4f}", "")
    Console().print(table)
    print({True: "augmentation leaks", False: "no leak found", None: "cannot tell; take more samples"}[found.leaks])
    if found.fraction is not None and found.error is not None:
        way = f"{100 * found.fraction:.1f} ± {100 * found.error:.1f} %"
        print(f"samples have gone {way} of the way from data to augmented data")
