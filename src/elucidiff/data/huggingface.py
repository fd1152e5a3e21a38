"""Data sets of the Hugging Face hub, or of a folder in its form, through the package `datasets`."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..component import require
from ..errors import FormatError, MissingExtraError, unknown
from .archives import MAX_MEMBER, Progress
from .dataset import Dataset
from .decoding import Images, decoded
from .labels import check_label_array

PREFIX = "hf:"


def read_huggingface(source: str, progress: Progress | None = None) -> Dataset:
    """The data set that hf:owner/name[:split[:image_column[:label_column]]] names, read into memory.

    The split is "train" unless given; the columns are the only one of images and the only one of class labels unless
    given. Images become uint8 (C, H, W) as those of folders do; whole numbers, names and vectors are labels too.

    Raises MissingExtraError without the package, ValueError for columns that are not there, FormatError for images
    and labels that cannot be used.
    """
    name, split, image, label = _parsed(source)
    library = _library()
    try:
        table = library.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # not found, no access, no network, no such split
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FileNotFoundError(f"{source}: no such data set, or no such split ({reason})") from error
    features = dict(table.features)
    image = _column(source, features, image, library.Image, "images", needed=True)
    label = _column(source, features, label, library.ClassLabel, "class labels", needed=False)
    # Undecoded: the bytes go through the same checks as every other image file.
    rows = table.cast_column(image, library.Image(decode=False))[image]
    names = [f"row {i}" for i in range(len(table))]
    images = Images(names, lambda i: _content(rows[i], f"{source}: row {i}"), source)
    values = decoded(images, progress)
    labels, classes = None, None
    if label is not None:
        labels, classes = _labels(table[label], features[label], f"{source}: {label}")
        labels = check_label_array(labels, len(values), f"{source}: {label}")
    return Dataset(values, labels, classes, f"{name.split('/')[-1]}-{split}", source)


def _parsed(source: str) -> tuple[str, str, str, str]:
    """(name, split, image column, label column); an empty column is to be found."""
    parts = re.split(r":(?![^[]*\])", source.removeprefix(PREFIX))  # a split may be train[:10%]
    require(
        bool(parts[0]) and len(parts) <= 4,
        f"data: got {source!r}; expected hf:owner/name, with :split, :image_column and :label_column as needed",
    )
    name, split, image, label = parts + [""] * (4 - len(parts))
    return name, split or "train", image, label


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise MissingExtraError("datasets", "data") from None


def _column(source: str, features: dict[str, Any], asked: str, kind: type, what: str, *, needed: bool) -> Any:
    """The name of a column: the one asked for, or the only one of a kind; None if there need be none."""
    if asked:
        require(asked in features, f"{source}: {unknown('column', asked, features)}")
        return asked
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) == 1 or (not found and not needed):
        return found[0] if found else None
    raise ValueError(
        f"{source}: {len(found)} columns of {what}; name one as in hf:owner/name:split:image_column:label_column "
        f"(columns: {', '.join(features)})"
    )


def _content(cell: Any, where: str) -> bytes:
    """The bytes of an image file: held by the table, or in a file that it names."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, None)
    if content is None and path and Path(path).is_file() and Path(path).stat().st_size <= MAX_MEMBER:
        content = Path(path).read_bytes()
    if not isinstance(content, bytes):
        raise FormatError(f"{where}: no image in it")
    return content


def _labels(cells: Any, feature: Any, where: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    values = list(cells)
    if any(value is None for value in values):
        raise FormatError(f"{where}: row {values.index(None)} has no label")
    if all(isinstance(value, str) for value in values):
        classes = tuple(sorted(set(values)))
        index = {name: k for k, name in enumerate(classes)}
        return np.array([index[value] for value in values], dtype=np.int64), classes
    try:
        labels = np.array(values)
    except ValueError as error:
        raise FormatError(f"{where}: vectors of several lengths") from error
    names = getattr(feature, "names", None)
    return labels, tuple(str(name) for name in names) if names else None
