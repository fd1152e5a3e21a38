"""The command `analyze`: the paper's instruments on any model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import show
from .options import DeviceOption, JsonOption, ModelArg, load_model, read_data

if TYPE_CHECKING:
    from ..analyze.section import Section


def analyze(
    model: ModelArg,
    data: Annotated[str | None, typer.Argument(help="Data, for scores and the loss.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "--outdir", help="New folder for report, pictures, JSON and samplers.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", help="recommendation,truncation,curvature,denoised,decided,loss. Default: all."),
    ] = None,
    nfe: Annotated[str, typer.Option("--nfe", help="Budgets of evaluations to recommend for.")] = "5,8,12,35",
    seeds: Annotated[int, typer.Option("--samples", min=2, help="Samples each instrument looks at.")] = 16,
    num: Annotated[int, typer.Option("--num", min=4, help="Samples a score is made of.")] = 500,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Recommend a sampler for a model, with reasons, and show where its errors come from.

    Truncation error, curvature, denoised images, where samples are decided, loss for each noise level.

    Example: elucidiff analyze runs/digits digits --out analysis
    """
    from ..analyze import analyze as run
    from ..files import refuse_existing
    from . import parse

    if out is not None:
        refuse_existing(out)
    budgets = parse.integers(nfe, "nfe")
    sections = run(
        load_model(model, device),
        read_data(data) if data else None,
        name=model,
        data_name=data,
        only=None if only is None else [word.strip() for word in only.split(",")],
        budgets=budgets,
        seeds=seeds,
        num=num,
        out=out,
        progress=True,
        say=lambda text: print(text, file=sys.stderr if as_json else sys.stdout),
    )
    if as_json:
        show.as_json({"model": model, "data": data} | {name: dict(s.numbers) for name, s in sections.items()})
        return
    for section in sections.values():
        _print(section)
    if out is not None:
        print(f"report: {(out / 'report.html').resolve()}")


def _print(section: Section) -> None:
    for table in section.tables:
        show.table(table.title, table.header, table.rows, words=table.words)
        if table.note:
            print(table.note)
    if section.files:
        print("use them with --sampler: " + ", ".join(section.files))
