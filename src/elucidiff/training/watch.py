"""What looks on while a model trains: each is shown every step, and decides itself what to do with it."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

import torch

from ..progress import Report
from .trainer import Step, Trainer

if TYPE_CHECKING:
    from .trackers import Trackers

LOG_EVERY = 2_000  # images between two lines of metrics.jsonl, at least
SHOW_EVERY = 1_000  # images between two changes of the progress bar, at least


class Watcher:
    """Sees a run of training. Subclasses define what they need; none may change the trainer.

    What it writes goes below the run directory; what it raises ends the run.
    """

    def start(self, trainer: Trainer, run: Path) -> None:
        """Before the first step; the run directory exists."""

    def step(self, trainer: Trainer, step: Step, seconds: float) -> None:
        """After each step, `seconds` after the start."""

    def snapshot(self, trainer: Trainer, folder: Path, seconds: float) -> None:
        """After each snapshot: the model directory of the first average, which `trainer.ema` holds at that moment."""

    def close(self) -> None:
        """At the end, also after an error."""


class JsonLines(Watcher):
    """A file of the run with a JSON object a line, and what the trackers are told of it."""

    file: ClassVar[str]

    def __init__(self, trackers: Trackers | None = None) -> None:
        self.trackers = trackers

    def start(self, trainer: Trainer, run: Path) -> None:
        """Open the file."""
        self.log: TextIO = (run / self.file).open("w", encoding="utf-8")

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

    def line(self, trainer: Trainer, steps: Sequence[Step], seconds: float) -> None:
        """Write the line of these steps."""
        raise NotImplementedError(f"{type(self).__name__} must define line(trainer, steps, seconds)")


class MetricsLog(StepLines):
    """metrics.jsonl: the means of loss and gradient norm over the steps since the last line, and where it stands.

    images, loss (of what is minimised), seconds, lr (of the last step), grad_norm (of steps that did not overflow, as
    float16 may; null when all did), images_per_second (since the last line, all included); on GPUs memory_peak, in
    bytes.
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
            "loss": sum(s.loss for s in steps) / len(steps),
            "seconds": round(seconds, 2),
            "lr": steps[-1].lr,
            "grad_norm": _mean([s.grad_norm for s in steps if math.isfinite(s.grad_norm)]),
            "images_per_second": round(len(steps) * trainer.config.batch / max(seconds - self.before, 1e-9), 1),
        }
        device = torch.device(trainer.config.device)
        if device.type == "cuda":
            line["memory_peak"] = torch.cuda.max_memory_allocated(device)
        self.before = seconds
        self.write(line, {name: value for name, value in line.items() if name not in ("images", "seconds")})


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
