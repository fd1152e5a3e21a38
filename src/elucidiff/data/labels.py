"""Labels of strangers' files, checked as a schema: class indices 0 <= k < 10^6, or finite vectors of one length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import FormatError

MAX_CLASSES = 10**6
MAX_FLOAT32 = float(np.finfo(np.float32).max)


def parse_dataset_json(content: bytes, where: str) -> tuple[dict[str, Any] | None, tuple[str, ...] | None]:
    """The labels by file name (None where the file says null) and the class names of a dataset.json.

    The form is {"labels": [[name, class-or-vector], ...], "classes": [name, ...]}, classes optional.
    """
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON ({error})") from error
    if not isinstance(table, dict) or "labels" not in table:
        raise FormatError(f'{where}: expected an object with "labels"')
    return _pairs(table["labels"], where), _class_names(table.get("classes"), where)


def _pairs(entries: Any, where: str) -> dict[str, Any] | None:
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise FormatError(f'{where}: "labels" must be a list of [name, label] pairs, or null')
    by_name: dict[str, Any] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise FormatError(f"{where}: labels[{i}] is {_short(entry)}; expected [name, label]")
        if entry[0] in by_name:
            raise FormatError(f"{where}: labels[{i}]: {entry[0]!r} occurs twice")
        by_name[entry[0]] = entry[1]
    return by_name


def _class_names(names: Any, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise FormatError(f'{where}: "classes" must be a list of names')
    return tuple(names)


def labels_in_order(by_name: dict[str, Any], names: Sequence[str], where: str) -> np.ndarray:
    """The labels of the named files, in their order: int64 (N,) or float32 (N, K). Every file has one, no more."""
    for name in names:
        if name not in by_name:
            raise FormatError(f"{where}: labels: {name!r} has none ({len(by_name)} labels for {len(names)} images)")
    if len(by_name) > len(names):
        extra = next(iter(by_name.keys() - set(names)))
        raise FormatError(f"{where}: labels: there is no image {extra!r} ({len(by_name)} labels, {len(names)} images)")
    values = [by_name[name] for name in names]
    vectors = isinstance(values[0], list)
    for name, value in zip(names, values, strict=True):
        fault = _vector_fault(value, values[0]) if vectors else _class_fault(value)
        if fault:
            raise FormatError(f"{where}: labels: {name!r} has {_short(value)}; {fault}")
    return np.array(values, dtype=np.float32 if vectors else np.int64)


def _class_fault(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_CLASSES:
        return ""
    return f"expected a class, a whole number from 0 to {MAX_CLASSES - 1:,}"


def _vector_fault(value: Any, first: list[Any]) -> str:
    if not isinstance(value, list) or len(value) != len(first) or not value:
        return f"expected a vector of {max(1, len(first))} numbers"
    return "" if all(_finite(v) for v in value) else "expected finite numbers"


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= MAX_FLOAT32  # false for NaN, and no overflow with an integer of any length


def check_label_array(labels: np.ndarray, n: int, where: str) -> np.ndarray:
    """An array of labels as int64 (N,) or float32 (N, K). Raises FormatError naming the field `where`."""
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "iu":
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != n:
        raise FormatError(f"{where}: shape {labels.shape} for {n} samples; expected ({n},) or ({n}, K)")
    if labels.ndim == 1:
        return _class_array(labels, where)
    if labels.dtype.kind not in "iuf" or labels.shape[1] == 0:
        raise FormatError(f"{where}: {labels.dtype} {labels.shape}; expected vectors of numbers")
    return finite_float32(labels, where)


def _class_array(labels: np.ndarray, where: str) -> np.ndarray:
    if labels.dtype.kind not in "iu":
        raise FormatError(f"{where}: {labels.dtype}; expected whole numbers, e.g. labels.astype('int64')")
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise FormatError(f"{where}: {labels.min()} to {labels.max()}; expected 0 to {MAX_CLASSES - 1:,}")
    return labels.astype(np.int64)


def check_class_names(labels: np.ndarray | None, classes: tuple[str, ...] | None, where: str) -> None:
    """Class names and labels fit: as many names as the largest label asks for, or as a vector has entries."""
    if labels is None or classes is None:
        return
    if labels.ndim == 2 and labels.shape[1] != len(classes):
        raise FormatError(f"{where}: {len(classes)} class names for vectors of {labels.shape[1]}")
    if labels.ndim == 1 and labels.max() >= len(classes):
        raise FormatError(f"{where}: label {labels.max()} is out of range for {len(classes)} class names")


def finite_float32(array: np.ndarray, where: str) -> np.ndarray:
    """The array as float32. Raises FormatError for NaN, infinity, or numbers beyond float32's range."""
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype=np.float32)
    bad = result.size - int(np.isfinite(result).sum())
    if bad:
        raise FormatError(f"{where}: {bad:,} of {result.size:,} numbers are NaN, infinite or beyond float32")
    return result


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, (list, dict)) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
