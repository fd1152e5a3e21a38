"""What all ranks do together between steps where weights are in pieces, and the first one alone where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from .checkpoint import Pace, State, write
from .trainer import Step, Trainer
from .watching.watch import Watcher


def takes_part(trainer: Trainer) -> bool:
    """Whether this rank is needed to write a snapshot or a checkpoint."""
    return trainer.weights.sharded or trainer.ranks.first


def due(pace: Pace, trainer: Trainer) -> bool:
    """Whether it is time for a checkpoint; for all ranks by the clock of the first, where all are needed."""
    now = pace.due(trainer.images_seen)
    return bool(trainer.ranks.of_first(now, trainer.config.device)) if trainer.weights.sharded else now


def model_for(watchers: Sequence[Watcher], trainer: Trainer, step: Step) -> AbstractContextManager[None]:
    """Within it the watchers of this step have the averaged model, where one of them needs it."""
    if not trainer.weights.sharded:
        return nullcontext()
    needed = any(watcher.needs_model(trainer, step) for watcher in watchers)
    return trainer.ema.together() if trainer.ranks.of_first(needed, trainer.config.device) else nullcontext()


def save_state(run: Path, trainer: Trainer, state: State) -> None:
    """Write a checkpoint: one file by the first rank, or one file each."""
    if trainer.weights.sharded:
        from .sharded_state import write_together  # which takes seconds to import

        write_together(run, trainer.images_seen, state, trainer.ranks, trainer.config.device)
    else:
        write(run, trainer.images_seen, state)
