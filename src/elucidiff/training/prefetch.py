"""The batches to come, drawn by threads while the network computes: the same bits as without them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import torch

from .draws import Draws, draw, rows_of_part

if TYPE_CHECKING:
    from .trainer import Trainer

STALLED = 20.0  # seconds after which a batch that does not come is told, and again after as many
SHOWN = 3  # names of its files
MOST = 4  # threads, unless more are asked for; they share Python's lock
Key = tuple[int, int, int]  # step, part, of how many


class ReadingWarning(UserWarning):
    """Training waits for data."""


def draws_of(trainer: Trainer, step: int, part: int, parts: int) -> Draws:
    """One of the parts of the batch of a step: a function of data, configuration and these numbers."""
    config = trainer.config
    return draw(
        trainer.dataset,
        trainer.order,
        trainer.design.objective.noise,
        step,
        config.batch,
        rows=rows_of_part(part, parts, config.batch),
        label_dropout=config.label_dropout,
        augment=config.augment,
        stratified=config.stratified,
    )


def drawn(trainer: Trainer, part: int) -> Draws:
    """A part of the batch of the trainer's step: made now, or ahead where it trains within `prefetched`."""
    key = (trainer.step, part, trainer.config.accumulate)
    return draws_of(trainer, *key) if trainer.ahead is None else trainer.ahead.take(key)


@contextmanager
def prefetched(trainer: Trainer) -> Iterator[None]:
    """Within it `workers` threads draw the parts that come next; at its end, also by an error, they are gone."""
    workers = trainer.config.workers
    workers = default_workers(trainer.config.device) if workers is None else workers
    if workers == 0:
        yield
        return
    trainer.ahead = ahead = Ahead(trainer, workers)
    try:
        yield
    finally:
        trainer.ahead = None
        ahead.close()


def default_workers(device: str) -> int:
    """None on CPUs, where threads take from the network what they give; for GPUs up to four."""
    if torch.device(device).type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST, cores - 1))


class Ahead:
    """The parts that come next, each one drawn by a thread of its own; one more waits than there are threads."""

    def __init__(self, trainer: Trainer, workers: int) -> None:
        self._trainer, self._depth = trainer, workers + 1
        self._pool = ThreadPoolExecutor(workers, "elucidiff-draws")
        self._waiting: dict[Key, Future[Draws]] = {}

    def take(self, key: Key) -> Draws:
        """The part that is asked for, or the error of drawing it; the following ones are begun."""
        wanted = [key, *islice(self._following(key), self._depth)]
        for old in self._waiting.keys() - set(wanted):  # the step or the number of parts was changed
            self._waiting.pop(old).cancel()
        for each in wanted:
            if each not in self._waiting:
                self._waiting[each] = self._pool.submit(draws_of, self._trainer, *each)
        future = self._waiting.pop(key)
        while not wait([future], STALLED).done:
            warnings.warn(self._stalled(key), ReadingWarning, stacklevel=2)
        return future.result()

    def close(self) -> None:
        """End the threads, when they are done with the part that they are at."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _following(self, key: Key) -> Iterator[Key]:
        """The parts of this rank after one, to the end of the run."""
        step, part, parts = key
        share = self._trainer.ranks.share(parts)
        yield from ((step, p, parts) for p in share if p > part)
        for later in range(step + 1, self._trainer.config.steps):
            yield from ((later, p, parts) for p in share)

    def _stalled(self, key: Key) -> str:
        step, part, parts = key
        data, config = self._trainer.dataset, self._trainer.config
        rows = rows_of_part(part, parts, config.batch)
        chosen = self._trainer.order.at(step * config.batch + rows.start, len(rows))
        names = [str(i) if data.names is None else data.names[i] for i in chosen]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return (
            f"step {step}: still reading after {STALLED:.0f} s, one of these of {data.source or data.name}: "
            f"{', '.join(names[:SHOWN])}{more}"
        )
