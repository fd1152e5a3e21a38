"""Labels in a table of comma-separated values: one row a file, its name first, then a class or a vector."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from .labels import labels_in_order

LABELS_CSV = "labels.csv"
NAME_COLUMNS = ("name", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class")
MAX_CSV = 256 * 2**20  # bytes

Labels = tuple[np.ndarray, tuple[str, ...] | None]


def labels_of_csv(content: bytes, names: Sequence[str], where: str) -> Labels:
    """The labels of the named files, in their order, and the class names if the table gives classes by name.

    The header is `name,label` (or file, filename, image; class) with whole numbers or names of classes, which are
    numbered in sorted order; or `name,v1,v2,...`, any other names of columns, with the entries of a vector.
    Every file has a row, and every row a file. Raises FormatError naming the row.
    """
    return _labels(rows_of_csv(content, where), names, where)


def labels_beside(path: Path, data: Path, root: str, names: Sequence[str]) -> Labels:
    """The same from a table beside the data: names as in the data, with or without its common folders or its name.

    path: the table; data: the folder or archive; root: the folders that all names begin with. Where rows begin with
    the data's own name (train/1.png for the folder train or train.zip), the others are of other data and do not count.
    """
    if path.stat().st_size > MAX_CSV:
        raise FormatError(f"{path}: {path.stat().st_size:,} bytes; at most {MAX_CSV:,} are read")
    where = f"{path} (labels of {data.name})"
    header, *rows = rows_of_csv(path.read_bytes(), where)
    for own in (f"{data.name}/", f"{data.stem}/"):
        mine = [row for row in rows if row[0].startswith(own)]
        if mine and not any(name.startswith(own) for name in names):
            rows = [[row[0].removeprefix(own), *row[1:]] for row in mine]
            break
    inner = set(names)
    short = all(row[0] in inner for row in rows)
    return _labels([header, *rows], names if short else [root + name for name in names], where)


def _labels(rows: list[list[str]], names: Sequence[str], where: str) -> Labels:
    header = [cell.strip() for cell in rows[0]]
    vectors = _is_vectors(header, where)
    by_name: dict[str, Any] = {}
    for i, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise FormatError(f"{where}: row {i} has {len(row)} cells; the header has {len(header)}")
        if row[0] in by_name:
            raise FormatError(f"{where}: row {i}: {row[0]!r} occurs twice")
        by_name[row[0]] = [_number(cell, f"{where}: row {i}") for cell in row[1:]] if vectors else row[1].strip()
    return (labels_in_order(by_name, names, where), None) if vectors else classes_of(by_name, names, where)


def rows_of_csv(content: bytes, where: str, separator: str = ",") -> list[list[str]]:
    """The rows that are not empty, at least one. Raises FormatError for what is no table."""
    try:
        text = content.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        kind = "comma" if separator == "," else "tab"
        raise FormatError(f"{where}: not a table of {kind}-separated values in UTF-8 ({error})") from error
    if not rows:
        raise FormatError(f"{where}: empty; expected a table")
    return rows


def _is_vectors(header: list[str], where: str) -> bool:
    """Whether the columns after the name are the entries of a vector."""
    if len(header) < 2 or header[0].lower() not in NAME_COLUMNS:
        raise FormatError(
            f"{where}: the header is {','.join(header)[:60]!r}; expected name,label or name,v1,v2,... "
            f"(the first column: {', '.join(NAME_COLUMNS)})"
        )
    named = [cell for cell in header[1:] if cell.lower() in LABEL_COLUMNS]
    if named and len(header) > 2:
        raise FormatError(f"{where}: a column {named[0]!r} among others; keep it, or the vector's columns")
    return not named


def _number(cell: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise FormatError(f"{where}: {cell[:40]!r} is no number") from None


def classes_of(by_name: dict[str, str], names: Sequence[str], where: str) -> Labels:
    """Labels of the named, in their order, from whole numbers or names of classes. Raises FormatError for a mixture."""
    texts = list(by_name.values())
    if all(_is_whole(text) for text in texts):
        return labels_in_order({name: int(text) for name, text in by_name.items()}, names, where), None
    for name, text in by_name.items():
        if is_numeric(text) or not text:
            raise FormatError(
                f"{where}: {name!r} has the label {text[:40]!r}; expected whole numbers in all rows or names in all "
                "(a number that is no class goes into a column named v1)"
            )
    classes = tuple(sorted(set(texts)))
    index = {name: k for k, name in enumerate(classes)}
    return labels_in_order({name: index[text] for name, text in by_name.items()}, names, where), classes


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() and len(text) < 20


def is_numeric(text: str) -> bool:
    """Whether a cell is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
