"""What looks on while a model trains: each is shown every step, and decides itself what to do with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from .trainer import Step, Trainer

LOG_EVERY = 2_000  # images between two lines of metrics.jsonl, at least


class Watcher:
    """Sees a run of training. Subclasses define what they need; none may change the trainer.

    What it writes goes below the run directory; what it raises ends the run.
    """

    def start(self, trainer: Trainer, run: Path) -> None:
        """Before the first step; the run directory exists."""

    def step(self, trainer: Trainer, step: Step, seconds: float) -> None:
        """After each step, `seconds` after the start."""

    def close(self) -> None:
        """At the end, also after an error."""


class MetricsLog(Watcher):
    """metrics.jsonl: a line every `LOG_EVERY` images and at the end, with the means of the steps since the last one.

    images, loss, seconds, lr (of the last step), grad_norm.
    """

    def start(self, trainer: Trainer, run: Path) -> None:
        """Open the file."""
        self.steps: list[Step] = []
        self.log: TextIO = (run / "metrics.jsonl").open("w", encoding="utf-8")

    def step(self, trainer: Trainer, step: Step, seconds: float) -> None:
        """Remember the step, and write the line when it is time."""
        self.steps.append(step)
        config = trainer.config
        if len(self.steps) * config.batch < LOG_EVERY and trainer.step < config.steps:
            return
        line = {
            "images": step.images,
            "loss": sum(s.loss for s in self.steps) / len(self.steps),
            "seconds": round(seconds, 2),
            "lr": step.lr,
            "grad_norm": sum(s.grad_norm for s in self.steps) / len(self.steps),
        }
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        self.steps.clear()

    def close(self) -> None:
        """Close the file."""
        self.log.close()
