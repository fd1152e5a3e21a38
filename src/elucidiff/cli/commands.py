"""The commands. Each parses its strings, calls the library, and prints; imports inside keep --help fast."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import show
from .ablate import ablate
from .analyze import analyze
from .classifier import classifier
from .compare import compare
from .ema import ema
from .evaluate import evaluate
from .latents import edit, interpolate, invert
from .leak import leak
from .likelihood import likelihood
from .options import (
    DataArg,
    JsonOption,
    is_model,
    load_model,
    read_data,
)
from .prepare import prepare
from .reference import reference
from .restore import restore
from .sample import sample
from .train import train


def table1(as_json: JsonOption = False) -> None:
    """Print Table 1 of the EDM paper from the code.

    Example: elucidiff table1
    """
    from ..design import PRESETS, compare_designs

    if as_json:
        show.as_json({name: design.to_dict() for name, design in PRESETS.items()})
    else:
        print(compare_designs(*PRESETS.values()))


def inspect(
    data: DataArg,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Also show the first samples on one sheet, a PNG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a data set, model or file of weights: shape, range, sigma_data, classes, the design that follows.

    Of data also the first samples, the mean and deviation of each channel, duplicates, and how many are in each class.
    Of a file of weights also what it would execute if it were unpickled; here nothing of it is.

    Example: elucidiff inspect digits --sheet digits.png
    """
    from ..data.sources import is_named_data
    from ..foreign import is_foreign

    if is_named_data(data) or sheet is not None:
        dataset = read_data(data)
        if sheet is not None:
            show.data_sheet(sheet, dataset)
        show.data(dataset, data, machine=as_json)
    elif Path(data).is_file() and is_foreign(data):
        show.foreign(data, machine=as_json)
    elif is_model(data):
        show.model(load_model(data, "cpu"), data, machine=as_json)
    else:
        show.data(read_data(data), data, machine=as_json)


def convert(
    source: Annotated[str, typer.Argument(help="Any MODEL that is a network.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="New directory; owner/name with --to hub.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="native, diffusers or hub.")] = "native",
) -> None:
    """Write a model in another format.

    native: a model directory of ours, from any network that can be read. diffusers: a folder of that library, from
    models that came from it. hub: a native model with its card, uploaded to owner/name.

    Example: elucidiff convert runs/digits models/digits
    Example: elucidiff convert models/imported pipeline --to diffusers
    """
    from ..errors import unknown
    from ..files import refuse_existing

    if to not in ("native", "diffusers", "hub"):
        raise ValueError(unknown("format", to, ["native", "diffusers", "hub"]))
    if to != "hub":
        refuse_existing(out)
    denoiser = load_model(source, "cpu")
    if to == "hub":
        from ..publish import evaluations_in, push

        print(f"uploaded to {push(denoiser, out.as_posix(), scores=evaluations_in(source))}")
        return
    if to == "diffusers":
        from ..adapters.diffusers import save as save_for_diffusers

        save_for_diffusers(denoiser, out)
    else:
        from ..models import save

        save(denoiser, out)
    print(f"wrote {out}")


def demo(
    out: Annotated[Path, typer.Option("--out", help="New run directory.")] = Path("runs/demo"),
    images: Annotated[int | None, typer.Option("--images", help="Shorter or longer training.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of training.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Real digits -> a trained model, its samples, their scores and a report: the whole library in five minutes.

    Example: elucidiff demo
    """
    from ..demo import run_demo

    outcome = run_demo(
        out, images=images, seed=seed, say=lambda text: print(text, file=sys.stderr if as_json else sys.stdout)
    )
    if as_json:
        show.as_json(outcome)


def bench(
    what: Annotated[str, typer.Argument(help="solvers.")],
    problems: Annotated[
        Path, typer.Option("--problems", help="Folder of the benchmark's problems.", show_default=False)
    ],
    nfe: Annotated[str, typer.Option("--nfe", help="Budgets of network evaluations.")] = "5,6,8,10,12,16,20,35,36",
    out: Annotated[Path | None, typer.Option("--out", help="Folder whose benchmarks.md gets the tables.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything measured to a file.")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit the defaults' time steps anew (20 minutes).")] = False,
) -> None:
    """Measure how exact each sampler is for a number of network evaluations, beside the best peers.

    Example: elucidiff bench solvers --problems ../shared/data/solver_problems --nfe 5,6,8,10
    """
    from ..bench import run_solvers
    from ..errors import unknown
    from . import parse

    if what != "solvers":
        raise ValueError(unknown("benchmark", what, ["solvers"]))
    budgets = parse.integers(nfe, "nfe")
    print(run_solvers(problems, budgets, out=out, json_file=json_file, fit=fit))


ALL: dict[str, Callable[..., None]] = {
    "demo": demo,
    "table1": table1,
    "inspect": inspect,
    "prepare": prepare,
    "train": train,
    "sample": sample,
    "ablate": ablate,
    "restore": restore,
    "classifier": classifier,
    "evaluate": evaluate,
    "reference": reference,
    "compare": compare,
    "ema": ema,
    "analyze": analyze,
    "convert": convert,
    "invert": invert,
    "interpolate": interpolate,
    "edit": edit,
    "likelihood": likelihood,
    "leak": leak,
    "bench": bench,
}
