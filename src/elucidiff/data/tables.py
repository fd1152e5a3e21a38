"""Points in a table of comma- or tab-separated values: a row is a sample, a column one of its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import FormatError
from .arrays import from_arrays
from .dataset import Dataset
from .label_csv import LABEL_COLUMNS, MAX_CSV, classes_of, is_numeric, rows_of_csv

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_table(path: Path) -> Dataset:
    """The data set of a .csv or .tsv file, float32 (N, D): a row a sample.

    The first row may name the columns; one of them may be `label` or `class`, with whole numbers or names, which are
    numbered in sorted order. Raises FormatError naming row and column.
    """
    where = str(path)
    if path.stat().st_size > MAX_CSV:
        raise FormatError(f"{path}: {path.stat().st_size:,} bytes; of tables at most {MAX_CSV:,} are read: use .npy")
    rows = rows_of_csv(path.read_bytes(), where, SEPARATORS[path.suffix.lower()])
    header = [cell.strip() for cell in rows[0]] if _is_header(rows[0]) else None
    first, rows = (1, rows) if header is None else (2, rows[1:])
    if not rows:
        raise FormatError(f"{path}: a header and no rows; expected a sample a row")
    width = len(header or rows[0])
    for i, row in enumerate(rows, first):
        if len(row) != width:
            raise FormatError(f"{path}: row {i} has {len(row)} cells; the first has {width}")
    label = None if header is None else _label_column(header, where)
    if width == 1 and label is not None:
        raise FormatError(f"{path}: only labels; expected a column for each number of a sample")
    values = [[cell for k, cell in enumerate(row) if k != label] for row in rows]
    try:
        x = np.array(values).astype(np.float64)
    except ValueError:
        raise FormatError(_not_a_number(values, first, where)) from None
    names = None if label is None else {f"row {i}": row[label].strip() for i, row in enumerate(rows, first)}
    labels, classes = (None, None) if names is None else classes_of(names, list(names), where)
    return from_arrays(x, labels, classes, name=path.stem, source=where)


def _is_header(row: list[str]) -> bool:
    """Whether a first row names columns: numbers in it are 0, 1, 2 .., as pandas writes them, or it is a sample."""
    numbers = [cell for cell in row if is_numeric(cell)]
    return row != ["0"] and numbers == [str(k) for k in range(len(numbers))]


def _label_column(header: list[str], where: str) -> int | None:
    """The column with the labels; None without. Raises FormatError for a column without a name, and for two of them."""
    if not all(header):
        nameless = header.index("") + 1
        hint = "; an index, as pandas writes it? Write the table with index=False" if nameless == 1 else ""
        raise FormatError(f"{where}: column {nameless} has no name in the first row{hint}")
    found = [k for k, name in enumerate(header) if name.lower() in LABEL_COLUMNS]
    if len(found) > 1:
        raise FormatError(f"{where}: {header[found[0]]!r} and {header[found[1]]!r} could both be the label; keep one")
    return found[0] if found else None


def _not_a_number(values: list[list[str]], first: int, where: str) -> str:
    i, cell = next((i, cell) for i, row in enumerate(values, first) for cell in row if not is_numeric(cell))
    return f"{where}: row {i}: {cell[:40]!r} is no number; labels belong into a column named label"
