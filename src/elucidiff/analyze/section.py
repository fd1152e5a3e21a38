"""What an instrument leaves: numbers, tables, pictures and a text, ready for a terminal, a page and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ..analysis import reference_and_real
from ..data import Dataset
from ..denoiser import Denoiser
from ..objective import Objective
from ..request import asked_by_data


class Picture(NamedTuple):
    """A picture as PNG bytes: its file's stem, caption, what it shows in words, and whether it has a row of its own."""

    file: str
    png: bytes
    caption: str
    alt: str
    wide: bool = False


class Table(NamedTuple):
    """A table of texts; all columns but the first are numbers unless `words` names them."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """One instrument's part of the report. numbers: JSON data. files: further files, name -> text."""

    title: str
    text: str
    numbers: Mapping[str, Any]
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is analysed: the model, its name, the training design it was made with, and data, where they are known.

    seeds: how many samples each instrument looks at. num: samples a score is made of.
    """

    name: str
    denoiser: Denoiser
    objective: Objective | None
    data: Dataset | None
    data_name: str | None
    budgets: Sequence[int]
    seeds: int = 16
    num: int = 500
    progress: bool = False

    def asked(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Labels and conditions of the samples of some seeds, of the data that are no reference (`asked_by_data`)."""
        if self.data is None:
            return {}
        return asked_by_data(self.denoiser, reference_and_real(self.data)[1], seeds)


def short(value: float | None, digits: int = 3) -> str:
    """A number as tables show it."""
    return "" if value is None else f"{value:.{digits}g}"
