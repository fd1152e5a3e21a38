"""Samples whose files cannot be read: left out where all are decoded at once, replaced where a batch reads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from ..component import require
from ..errors import FormatError, unknown

RAISE, SKIP = "raise", "skip"  # what `on_bad_data` may be


def check_on_bad_data(what: str) -> None:
    """Raise ValueError unless it is one of the two."""
    require(what in (RAISE, SKIP), unknown("on_bad_data", what, (RAISE, SKIP)))


class BadDataWarning(UserWarning):
    """A file of a data set cannot be read; another sample stands in its place, or none."""


def substitutes(n: int, rows: np.ndarray, check: Callable[[int], None], where: str) -> np.ndarray:
    """The rows to read in place of these of n: of one that `check` raises FormatError for, the next that is readable.

    A function of the data alone, so that any number of processes and a run that goes on read the same.
    """
    return np.array([_readable(n, int(row), check, where) for row in rows], np.int64)


def _readable(n: int, row: int, check: Callable[[int], None], where: str) -> int:
    """The first row that can be read, from this one on, from the start again at the end."""
    first: FormatError | None = None
    for other in range(row, row + n):
        try:
            check(other % n)
        except FormatError as error:
            first = first or error
        else:
            if first is not None:
                warnings.warn(f"{first}; the next sample stands in its place", BadDataWarning, stacklevel=4)
            return other % n
    raise FormatError(f"{where}: none of {n:,} samples can be read ({first})")


def left_out(names: list[str], bad: dict[int, str], where: str) -> np.ndarray:
    """A mask (N,) of the samples that were read; warns of the others, of which the errors are given by number."""
    if len(bad) == len(names):
        raise FormatError(f"{where}: none of {len(names):,} images can be read ({next(iter(bad.values()))})")
    kept = np.ones(len(names), np.bool_)
    if bad:
        kept[list(bad)] = False
        shown = "; ".join(list(bad.values())[:3]) + (f"; and {len(bad) - 3} more" if len(bad) > 3 else "")
        warnings.warn(
            f"{where}: {len(bad)} of {len(names):,} images cannot be read and are left out: {shown}",
            BadDataWarning,
            stacklevel=4,
        )
    return kept
