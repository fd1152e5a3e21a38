"""What looks on while a model trains: each is shown every step, and decides itself what to do with it."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

import torch

from ...files import write_atomically
from ...progress import Report
from ..checkpoint import State
from ..trainer import Step, Trainer

if TYPE_CHECKING:
    from .trackers import Trackers

LOG_EVERY = 2_000  # images between two lines of metrics.jsonl, at least
UNTOLD = ("images", "seconds", "reason")  # of a line, that are no numbers for trackers
SHOW_EVERY = 1_000  # images between two changes of the progress bar, at least


class Watcher:
    """Sees a run of training. Subclasses define what they need; none may change the trainer.

    What it writes goes below the run directory; what it raises ends the run.
    """

    def start(self, trainer: Trainer, run: Path) -> None:
        """Before the first step; the run directory exists."""

    def step(self, trainer: Trainer, step: Step, seconds: float) -> None:
        """After each step, `seconds` after the start."""

    def needs_model(self, trainer: Trainer, step: Step) -> bool:
        """Whether `step` will use `trainer.ema.module`, which sharded training has to put together for it."""
        return False

    def snapshot(self, trainer: Trainer, folder: Path, seconds: float) -> None:
        """After each snapshot: the model directory of the first average, which `trainer.ema` holds at that moment."""

    def state(self) -> State:
        """What it has to remember beyond the step, for a run that goes on."""
        return State({}, {})

    def restore(self, state: State) -> None:
        """Take on what `state` gave, after `start`."""

    def close(self) -> None:
        """At the end, also after an error."""


class JsonLines(Watcher):
    """A file of the run with a JSON object a line, and what the trackers are told of it."""

    file: ClassVar[str]

    def __init__(self, trackers: Trackers | None = None) -> None:
        self.trackers = trackers

    def start(self, trainer: Trainer, run: Path) -> None:
        """Open the file; of a run that goes on, without the lines that will be written again."""
        path = run / self.file
        kept = lines_until(path, trainer.images_seen) if trainer.step else []
        write_atomically(path, "".join(kept).encode())
        self.log: TextIO = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any], numbers: Mapping[str, float | None]) -> None:
        """Write a line, which has "images", and tell the trackers these numbers of it."""
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        if self.trackers is not None:
            self.trackers.numbers(line["images"], numbers)

    def close(self) -> None:
        """Close the file."""
        self.log.close()


class StepLines(JsonLines):
    """A line every `LOG_EVERY` images and at the end, made of the steps since the last one (`line`)."""

    def start(self, trainer: Trainer, run: Path) -> None:
        """Open the file."""
        super().start(trainer, run)
        self.steps: list[Step] = []

    def step(self, trainer: Trainer, step: Step, seconds: float) -> None:
        """Remember the step, and write the line when it is time."""
        self.steps.append(step)
        config = trainer.config
        if len(self.steps) * config.batch >= LOG_EVERY or trainer.step >= config.steps:
            self.line(trainer, self.steps, seconds)
            self.steps.clear()

    def state(self) -> State:
        """The steps since the last line."""
        if not self.steps:
            return State({}, {})
        numbers = [[s.images, s.loss, s.grad_norm, s.lr, s.replaced] for s in self.steps]
        tensors = {
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            "sigma": torch.stack([s.sigma for s in self.steps]),
            "losses": torch.stack([s.losses for s in self.steps]),
        }
        return State(tensors, {"skipped": [s.skipped for s in self.steps]})

    def restore(self, state: State) -> None:
        """Remember them again."""
        if not state.tensors:
            return
        rows = zip(*(state.tensors[name] for name in ("numbers", "sigma", "losses")), strict=True)
        for (numbers, sigma, losses), reason in zip(rows, state.facts["skipped"], strict=True):
            images, loss, grad_norm, lr, *replaced = numbers.tolist()  # the last came later
            self.steps.append(Step(int(images), loss, sigma, losses, grad_norm, lr, reason, int(sum(replaced))))

    def line(self, trainer: Trainer, steps: Sequence[Step], seconds: float) -> None:
        """Write the line of these steps."""
        raise NotImplementedError(f"{type(self).__name__} must define line(trainer, steps, seconds)")


class MetricsLog(StepLines):
    """metrics.jsonl: the means of loss and gradient norm over the steps since the last line, and where it stands.

    images, loss (of what is minimised), seconds, lr (of the last step), grad_norm (of steps that did not overflow, as
    float16 may; null when all did), images_per_second (since the last line, all included); on GPUs memory_peak, in
    bytes. Where there are any: left_out and replaced, samples that cannot be read, of the data and in these steps;
    accumulate, once it is not that of the configuration.
    """

    file = "metrics.jsonl"

    def start(self, trainer: Trainer, run: Path) -> None:
        """Open the file."""
        super().start(trainer, run)
        self.before = 0.0

    def line(self, trainer: Trainer, steps: Sequence[Step], seconds: float) -> None:
        """Write the line of these steps."""
        line: dict[str, Any] = {
            "images": steps[-1].images,
            "loss": _mean([s.loss for s in steps if not s.skipped]),
            "seconds": round(seconds, 2),
            "lr": steps[-1].lr,
            "grad_norm": _mean([s.grad_norm for s in steps if math.isfinite(s.grad_norm)]),
            "images_per_second": round(len(steps) * trainer.config.batch / max(seconds - self.before, 1e-9), 1),
        }
        device = torch.device(trainer.config.device)
        if device.type == "cuda":
            line["memory_peak"] = torch.cuda.max_memory_allocated(device)
        self.before = seconds
        line |= _unusual(trainer, steps)
        if reasons := [s.skipped for s in steps if s.skipped]:
            line |= {"skipped": len(reasons), "reason": reasons[0]}
        self.write(line, {name: value for name, value in line.items() if name not in UNTOLD})


def _unusual(trainer: Trainer, steps: Sequence[Step]) -> dict[str, int]:
    """What is worth a number only where it is not as a rule."""
    replaced, accumulate = sum(s.replaced for s in steps), trainer.config.accumulate
    found = {"left_out": trainer.dataset.left_out, "replaced": replaced}
    changed = {"accumulate": accumulate} if accumulate != trainer.asked else {}
    return {name: count for name, count in found.items() if count} | changed


def lines_until(path: Path, images: int) -> list[str]:
    """The lines of a file of JSON lines with at most so many "images"; a last one that was cut off is left out."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else ():
        try:
            if line.endswith("\n") and json.loads(line)["images"] <= images:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class Bar(Watcher):
    """The progress bar: images of all, time left, the loss as its mean over the last `LOG_EVERY` images, speed."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def start(self, trainer: Trainer, run: Path) -> None:
        """Begin at nothing."""
        self.losses: deque[float] = deque(maxlen=-(-LOG_EVERY // trainer.config.batch))
        self.shown = 0

    def step(self, trainer: Trainer, step: Step, seconds: float) -> None:
        """Show it, when there is enough of it."""
        self.losses.append(step.loss)
        config = trainer.config
        if step.images - self.shown >= SHOW_EVERY or trainer.step >= config.steps:
            loss = sum(self.losses) / len(self.losses)
            text = f"loss {loss:.4g}, {step.images / seconds:,.0f} images/s"
            self.report(step.images, config.steps * config.batch, text)
            self.shown = step.images
