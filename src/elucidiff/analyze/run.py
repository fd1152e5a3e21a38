"""The instruments one after the other, and the report they make."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..analysis.recommend import BUDGETS
from ..component import require
from ..data import DataLike, dataset_of
from ..denoiser import Denoiser
from ..errors import unknown
from ..files import folder_written_atomically
from ..models import design_of
from ..request import follows_data
from . import instruments
from .section import Section, Subject

INSTRUMENTS: dict[str, Callable[[Subject], Section]] = {
    "recommendation": instruments.recommendation,
    "truncation": instruments.truncation,
    "curvature": instruments.curvature,
    "denoised": instruments.denoised,
    "decided": instruments.decided,
    "loss": instruments.loss,
}

Say = Callable[[str], None]


def analyze(
    denoiser: Denoiser,
    data: DataLike | None = None,
    *,
    name: str = "model",
    data_name: str | None = None,
    only: Sequence[str] | None = None,
    budgets: Sequence[int] = BUDGETS,
    seeds: int = 16,
    num: int = 500,
    out: str | Path | None = None,
    progress: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Section]:
    """Measure a model with the paper's instruments; the sections by name, and with `out` the report in a new folder.

    The folder gets report.html, analysis.json with all numbers, a PNG a picture, and sampler-NFE.json with the
    recommended samplers. only: names of INSTRUMENTS; all that can run when None (the loss needs data). seeds: samples
    each instrument looks at. num: samples of a score. say: is told what begins.

    A model with an image condition or vectors as labels needs data: samples follow theirs (`request.asked_by_data`).

    Raises ValueError for unknown instruments and for the loss without data, FileExistsError for a folder with something
    in it.
    """
    data = None if data is None else dataset_of(data)
    chosen = list(only) if only is not None else [n for n in INSTRUMENTS if n != "loss" or data is not None]
    for one in chosen:
        require(one in INSTRUMENTS, unknown("instrument", one, INSTRUMENTS))
    require(data is not None or "loss" not in chosen, "loss: needs DATA beside the model")
    needs = follows_data(denoiser)
    require(data is not None or not needs, "DATA is needed: samples of this model follow images or vectors of data")
    require(seeds >= 2, f"seeds: got {seeds}; expected at least 2 samples")
    design = design_of(denoiser)
    subject = Subject(
        name=name,
        denoiser=denoiser,
        objective=None if design is None else design.objective,
        data=data,
        data_name=data_name or (None if data is None else data.name),
        budgets=budgets,
        seeds=seeds,
        num=num,
        progress=progress,
    )
    sections = {}
    for i, one in enumerate(chosen):
        say(f"{i + 1}/{len(chosen)}  {one}")
        sections[one] = INSTRUMENTS[one](subject)
    if out is not None:
        write(Path(out), subject, sections)
    return sections


def write(out: Path, subject: Subject, sections: dict[str, Section]) -> Path:
    """The report and its files in a new folder, whole or not at all."""
    with folder_written_atomically(out) as folder:
        for section in sections.values():
            for picture in section.pictures:
                (folder / f"{picture.file}.png").write_bytes(picture.png)
            for file, text in section.files.items():
                (folder / file).write_text(text, encoding="utf-8")
        (folder / "analysis.json").write_text(json.dumps(numbers(subject, sections), indent=1) + "\n", encoding="utf-8")
        _page(subject, sections).write(folder / "report.html")
    return out / "report.html"


def numbers(subject: Subject, sections: dict[str, Section]) -> dict[str, Any]:
    """All numbers as JSON data."""
    facts = {"model": subject.name, "data": subject.data_name}
    return facts | {name: dict(section.numbers) for name, section in sections.items()}


def _page(subject: Subject, sections: dict[str, Section]) -> Any:
    from ..publish import evaluations_in
    from ..report import Page
    from ..report.evaluation import evaluation_section

    beside = f", measured on {subject.data_name}" if subject.data_name else ""
    page = Page(f"Analysis of {subject.name}", f"What its samplers do, and which to use{beside}.")
    for section in sections.values():
        page.section(section.title, section.text)
        for table in section.tables:
            numeric = {i for i, head in enumerate(table.header) if i and head not in table.words}
            page.paragraph(table.title)
            page.table(table.header, table.rows, note=table.note, numeric=numeric)
        for picture in section.pictures:
            if picture.wide:
                page.picture(picture.png, picture.caption, picture.alt)
        page.pictures([(p.png, p.caption, p.alt) for p in section.pictures if not p.wide])
    evaluation_section(page, evaluations_in(subject.name))
    return page
