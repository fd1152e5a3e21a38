"""`elucidiff compare`: quality against the number of evaluations, and the search for the stochasticity."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import show
from .compare_show import comparison_picture, print_comparison, print_search, search_picture
from .compare_specs import grid_values, model_specs, sampler_specs
from .options import (
    METRICS_HELP,
    DataArg,
    DeviceOption,
    FeaturesOption,
    JsonOption,
    check_resumable,
    chosen_features,
    load_model,
    read_data,
)

if TYPE_CHECKING:
    from ..analysis import StochasticitySearch
    from ..data import Dataset
    from ..denoiser import Denoiser
    from ..sampler import Sampler

# The four of Table 1, the multistep solvers in daily use, and a stochastic one.
SAMPLERS = "edm,vp,ve,iddpm,dpmpp_2m,unipc,deis,dpmpp_2m_sde"
NFES = "5,8,12,18,25,35,50,79"
STORE = "compare.jsonl"


def compare(
    model: Annotated[
        str,
        typer.Argument(help="One MODEL or several, separated by commas; NAME=MODEL names one.", show_default=False),
    ],
    data: DataArg,
    samplers: Annotated[
        str,
        typer.Option(
            "--samplers",
            help="Separated by commas: edm, vp, ve, iddpm, own (of the model's design), a solver (on EDM's sampler), a "
            ".json file; settings follow, [NAME=]dpmpp_2m:timesteps=logsnr:sigma_min=0.01.",
        ),
    ] = SAMPLERS,
    nfe: Annotated[str | None, typer.Option("--nfe", help=f"Budgets of evaluations: {NFES}; to --search: 35.")] = None,
    num: Annotated[int, typer.Option("--num", min=4, help="Samples a repeat.")] = 500,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Repeats, each with seeds of its own.")] = 3,
    metrics: Annotated[str, typer.Option("--metrics", help=METRICS_HELP)] = "fd",
    features: FeaturesOption = None,
    heldout: Annotated[float, typer.Option("--heldout", help="The part of the data that is the reference.")] = 0.5,
    first_seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds are this and the following ones.")] = 0,
    search: Annotated[
        str | None,
        typer.Option("--search", help="stochasticity: the best S_churn, S_min, S_max, S_noise for each sampler."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="NAME=V,V,...", help="Values for --search: S_churn=1,2,4. May be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for table, picture and store; what is in the store is kept.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "--batch", min=1, help="Samples at a time.")] = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Score samplers on models over budgets of network evaluations (NFE), with spread, beside real data.

    With --out every measurement is stored as soon as it is made; the same command goes on where it was stopped.
    Samples of a model that needs an image or vectors follow those of the data that are no reference.

    Example: elucidiff compare runs/digits digits --samplers edm,unipc,dpmpp_2m --nfe 5,8,12 --num 200 --out compared
    Example: elucidiff compare runs/digits digits --search stochasticity --samplers edm --nfe 35 --out churn
    """
    from ..errors import unknown
    from . import parse

    if search not in (None, "stochasticity"):
        raise ValueError(unknown("search", search, ["stochasticity"]))
    if grid and not search:
        raise ValueError("--grid: gives the values of a search; add --search stochasticity")
    budgets = parse.integers(nfe or ("35" if search else NFES), "nfe")
    asked = [name.strip() for name in metrics.split(",")]
    values = {name: numbers for name, numbers in map(grid_values, grid or [])}
    chosen = sampler_specs("edm" if search and samplers == SAMPLERS else samplers)
    if out is not None:
        check_resumable(out, STORE)
    models = {name: load_model(path, device) for name, path in model_specs(model).items()}
    options: dict[str, Any] = {
        "num": num,
        "repeats": repeat,
        "first_seed": first_seed,
        "heldout": heldout,
        "batch_size": batch_size,
        "extractor": chosen_features(features),
        "store": None if out is None else out / STORE,
    }
    with _hint_when_interrupted(out):
        if search:
            _run_search(models, read_data(data), chosen, budgets, asked, values, options, out, as_json)
        else:
            _run(models, read_data(data), chosen, budgets, asked, options, out, as_json)


def _run(
    models: dict[str, Denoiser],
    data: Dataset,
    samplers: dict[str, Sampler | None],
    budgets: list[int],
    metrics: list[str],
    options: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    from ..analysis import compare as measure
    from ..progress import bar

    with bar("comparing") as report:
        found = measure(models, data, samplers, budgets, metrics=metrics, progress=report, **options)
    if out is not None:
        _write(out, "compare", found.to_dict(), comparison_picture(found))
    if as_json:
        show.as_json(found.to_dict())
    else:
        print_comparison(found)
        _say_where(out, "compare")


def _run_search(
    models: dict[str, Denoiser],
    data: Dataset,
    samplers: dict[str, Sampler | None],
    budgets: list[int],
    metrics: list[str],
    values: dict[str, list[float]],
    options: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    from ..analysis import search_stochasticity
    from ..progress import bar

    if len(metrics) > 1:
        raise ValueError(f"--metrics: got {', '.join(metrics)}; a search has one")
    found: list[StochasticitySearch] = []
    for budget in budgets:
        with bar(f"searching, NFE {budget}") as report:
            found += search_stochasticity(
                models, data, samplers, budget, grid=values, metric=metrics[0], progress=report, **options
            )
    content = {"searches": [search.to_dict() for search in found]}
    if out is not None:
        _write(out, "stochasticity", content, search_picture(found))
        for search in found:
            name = "-".join(["best", search.model, search.sampler, str(search.nfe)])
            search.best.save(out / (re.sub(r"[^\w.-]", "_", name) + ".json"))
    if as_json:
        show.as_json(content)
    else:
        for search in found:
            print_search(search)
        _say_where(out, "stochasticity")


@contextmanager
def _hint_when_interrupted(out: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if out is not None:
            print(f"\nwhat was measured is in {out}; the same command goes on from there", file=sys.stderr)
        raise


def _write(out: Path, name: str, content: dict[str, Any], picture: bytes) -> None:
    from ..files import write_atomically

    write_atomically(out / f"{name}.json", (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(out / f"{name}.png", picture)


def _say_where(out: Path | None, name: str) -> None:
    if out is not None:
        print(f"numbers: {out / name}.json, picture: {out / name}.png")
