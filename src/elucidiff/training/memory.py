"""When memory ends: a message that says what to change, or a batch worked through in twice as many parts."""

from __future__ import annotations

import functools
import gc
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from .errors import OutOfMemory
from .ranks import Ranks

if TYPE_CHECKING:
    from .config import TrainConfig
    from .trainer import Seen, Trainer

R = TypeVar("R")
Method = TypeVar("Method", bound=Callable[..., Any])
WORDS = (  # of the RuntimeErrors that have no class of their own
    "out of memory", "DefaultCPUAllocator", "can't allocate memory", "not enough memory", "_ALLOC_FAILED",
)  # fmt: skip


class MemoryWarning(UserWarning):
    """A batch did not fit into memory, and is worked through in more parts from now on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ended, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


def explained(step: Method) -> Method:
    """A method of the trainer that says what to change (OutOfMemory) where memory ends within it."""

    @functools.wraps(step)
    def wrapper(trainer: Trainer) -> Any:
        try:
            return step(trainer)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
                raise
            raise OutOfMemory(message(trainer, error)) from error

    return cast("Method", wrapper)


def halving(trainer: Trainer, use: Callable[[Iterator[Any]], R]) -> tuple[R, list[Seen]]:
    """What `use` makes of the gradients of this rank's parts of the batch, one after the other, and what they showed.

    With oom="halve" a step that does not fit on some rank is begun again by all, with the same samples, levels and
    noise, in twice as many parts, down to one sample each; the trainer keeps the new number. Not with sharded weights:
    within a step their ranks wait for each other, and one without memory cannot tell them.
    """
    if not _halves(trainer):
        seen: list[Seen] = []
        return use(trainer._gradients(part, seen) for part in trainer.ranks.share(trainer.config.accumulate)), seen
    while True:
        attempt = _Attempt(trainer)
        try:
            return use(attempt.parts()), attempt.seen
        except (RuntimeError, MemoryError) as error:
            if (attempt.agreed and not isinstance(error, _Again)) or not is_out_of_memory(error):
                raise
            failure = str(error) or type(error).__name__  # not the error itself: its frames hold the tensors
        if not attempt.agreed:  # memory ended between two parts
            attempt.agree(failure)
        del attempt
        _halve(trainer, failure)


class _Again(MemoryError):
    """Some rank has no memory for this many parts."""


class _Attempt:
    """A step in a certain number of parts; at the end of them all ranks tell each other whether they had memory."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self.agreed = trainer, False
        self.seen: list[Seen] = []

    def parts(self) -> Iterator[Any]:
        """The gradients of one part after the other. Raises _Again where some rank had no memory for its own."""
        failure = ""
        for part in self._trainer.ranks.share(self._trainer.config.accumulate):
            try:
                found = self._trainer._gradients(part, self.seen)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error) or type(error).__name__
                break
            yield found
        if self.agree(failure):
            raise _Again(failure or "on another rank")

    def agree(self, failure: str) -> bool:
        """Whether some rank had no memory; each asks once."""
        self.agreed = True
        return bool(self._trainer.ranks.highest(bool(failure), self._trainer.config.device))


def _halves(trainer: Trainer) -> bool:
    return trainer.config.oom == "halve" and not trainer.weights.sharded


def resumed(config: TrainConfig, accumulate: int) -> TrainConfig:
    """The configuration of a run that goes on, in as many parts as it had come to when it stopped."""
    return config.replace(accumulate=accumulate) if config.oom == "halve" and accumulate > config.accumulate else config


def _halve(trainer: Trainer, failure: str) -> None:
    """Twice as many parts, or OutOfMemory where each has one sample already."""
    config, ranks = trainer.config, trainer.ranks
    parts = more_parts(config.accumulate, config.batch, ranks)
    trainer.optimizer.zero_grad(set_to_none=True)
    if parts == config.accumulate:
        raise OutOfMemory(message(trainer, MemoryError(failure)))
    trainer.config = config.replace(accumulate=parts)
    gc.collect()
    if torch.device(config.device).type == "cuda":
        torch.cuda.empty_cache()
    if ranks.first:
        warnings.warn(
            f"step {trainer.step}: out of memory ({_short(failure)}); batches of {config.batch} are worked through in "
            f"{parts} parts from now on, not {config.accumulate}: accumulate={parts}",
            MemoryWarning,
            stacklevel=2,
        )


def more_parts(accumulate: int, batch: int, ranks: Ranks) -> int:
    """Twice as many parts; at most one a sample, and a multiple of the ranks."""
    return max(accumulate, min(2 * accumulate, batch // ranks.size * ranks.size))


def message(trainer: Trainer, error: BaseException) -> str:
    """What did not fit, and what makes it smaller."""
    config, shape = trainer.config, trainer.dataset.shape
    each = math.ceil(config.batch / config.accumulate)
    count = sum(p.numel() for p in trainer.parameters)
    return (
        f"step {trainer.step}: out of memory on {config.device} ({_short(str(error))}): batch={config.batch} in "
        f"accumulate={config.accumulate} parts, {each} samples of {'x'.join(map(str, shape))} at a time, "
        f"{count:,} parameters, precision={config.precision}. "
        f"Lower it by one of: {', '.join(_remedies(trainer))}"
    )


def _remedies(trainer: Trainer) -> Iterator[str]:
    config = trainer.config
    parts = more_parts(config.accumulate, config.batch, trainer.ranks)
    if parts > config.accumulate:
        yield f"accumulate={parts} (the same result from smaller parts)"
        if not trainer.weights.sharded and config.oom != "halve":
            yield "oom=halve (the same by itself)"
    if config.batch > 1:
        yield f"batch={config.batch // 2}"
    if config.precision == "float32":
        yield "precision=bfloat16"
    yield from ("fewer network.channels", "data of lower resolution")


def _short(text: str) -> str:
    first = " ".join(text.split()) or "no details"
    return first if len(first) <= 160 else f"{first[:157]}..."
