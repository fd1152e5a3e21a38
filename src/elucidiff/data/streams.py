"""Data sets sample by sample, so that they need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FormatError
from .archives import Progress, listed, one_by_one, opened
from .dataset import Dataset
from .sources import is_images, load

AT_ONCE = 256  # samples that are read together where a data set stays in its files


@dataclass(frozen=True)
class Source:
    """Named samples, read when they are asked for; in place of one that cannot be read, the error that says why."""

    where: str
    names: Sequence[str]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    samples: Callable[[], Iterator[np.ndarray | FormatError | OSError]]
    is_image: bool = True


@contextmanager
def opened_source(source: str | Path, others: bool, progress: Progress | None) -> Iterator[Source]:
    """What `load` would read, sample by sample; with others, images of other formats are listed, as unreadable ones.

    A folder or ZIP of images is read from its files; anything else as `load` returns it.
    """
    path = Path(source)
    if source != "digits" and is_images(path):
        with opened(path) as files:
            names, labels, classes = listed(files, others)
            yield Source(str(path), names, labels, classes, lambda: one_by_one(files, names))
        return
    dataset = load(source, progress)
    names = list(dataset.names or (f"sample {i}" for i in range(len(dataset))))
    yield Source(
        str(source), names, dataset.labels, dataset.classes, lambda: _samples(dataset), is_image=dataset.is_image
    )


def _samples(dataset: Dataset) -> Iterator[np.ndarray | FormatError | OSError]:
    """The samples in turn; those that stay in files are read some at a time, and alone where one is damaged."""
    for start in range(0, len(dataset), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(dataset)))
        try:
            values = dataset.subset(rows).values
        except (FormatError, OSError):
            yield from (_alone(dataset, int(row)) for row in rows)
        else:
            yield from values


def _alone(dataset: Dataset, row: int) -> np.ndarray | FormatError | OSError:
    try:
        return dataset.subset([row]).values[0]
    except (FormatError, OSError) as error:
        return error
