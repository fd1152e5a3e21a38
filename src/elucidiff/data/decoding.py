"""Many image files, decoded into one array: by threads, since Pillow lets others work while it decodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ..errors import FormatError
from .archives import Progress, strict_pillow
from .arrays import check_memory
from .images import decode

REPORT_EVERY = 64
THREADS = 8  # more gain nothing: what lies around the decoding is done by one at a time


class Images(NamedTuple):
    """N image files: their names, what reads number i (by several threads at once, if asked), what holds them all."""

    names: list[str]
    read: Callable[[int], bytes]
    where: str

    def decode(self, i: int) -> np.ndarray | FormatError:
        """Image i as uint8 (C, H, W), or the error that names it."""
        try:
            return decode(self.read(i), f"{self.where}: {self.names[i]}")
        except FormatError as error:
            return error


def decoded(
    images: Images, progress: Progress | None, bad: dict[int, str] | None = None, *, threads: int = 1
) -> np.ndarray:
    """All images as uint8 (N, C, H, W).

    Grey among colour becomes RGB, exactly. Raises FormatError naming the file that is damaged or of another size;
    given `bad`, the message of a damaged one is put there by its number, and its values are zero.
    """
    values = np.empty((0, 0, 0, 0), np.uint8)
    with strict_pillow():
        for i, pixels in good(in_order(images, progress, threads), bad):
            if not len(values):
                check_memory(len(images.names) * pixels.size, images.where)
                values = np.zeros((len(images.names), *pixels.shape), np.uint8)
                first = i
            if pixels.shape != values.shape[1:]:
                check_size(images, (first, values.shape[2:]), (i, pixels.shape[1:]))
                values = values if values.shape[1] == 3 else values.repeat(3, axis=1)
            values[i] = pixels
    return values if len(values) else np.zeros((len(images.names), 1, 1, 1), np.uint8)


def in_order(images: Images, progress: Progress | None, threads: int) -> Iterator[np.ndarray | FormatError]:
    """The images one after the other, to be consumed within `strict_pillow`; errors in the place of damaged ones."""
    count = len(images.names)
    for start in range(0, count, REPORT_EVERY):
        rows = range(start, min(start + REPORT_EVERY, count))
        yield from _decoded_rows(images, rows, threads) if threads > 1 else map(images.decode, rows)
        if progress is not None:
            progress(rows.stop, count)


def _decoded_rows(images: Images, rows: range, threads: int) -> list[np.ndarray | FormatError]:
    """Some images, by threads that are gone when they are returned: a generator that is dropped leaves none behind."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(images.decode, rows))


def good(found: Iterable[np.ndarray | FormatError], bad: dict[int, str] | None) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers and pixels of what could be decoded; the others' messages go into `bad`, or the first one is raised."""
    for i, pixels in enumerate(found):
        if not isinstance(pixels, FormatError):
            yield i, pixels
        elif bad is None:
            raise pixels
        else:
            bad[i] = str(pixels)


def check_size(images: Images, one: tuple[int, tuple[int, ...]], other: tuple[int, tuple[int, ...]]) -> None:
    """Raise FormatError unless two images, by number and (H, W), are of one size."""
    (i, (height, width)), (k, (h, w)) = one, other
    if (h, w) != (height, width):
        raise FormatError(
            f"{images.where}: mixed sizes: {images.names[i]} is {width}x{height}, {images.names[k]} is {w}x{h}; "
            "resize or crop them to one"
        )


def threads_here() -> int:
    """How many threads decode on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(THREADS, cores)
