"""Samples from the same seeds again and again while a model trains: one sees it learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...data.sheets import DOTS, PANELS, write_images, write_sheet
from ...design import EDM
from ...request import image_condition
from ...sampler import Sampler, sample
from ..checkpoint import State
from ..trainer import Step, Trainer
from .watch import Watcher

if TYPE_CHECKING:
    from .trackers import Trackers

SAMPLER: Sampler = EDM.sampler.replace(steps=8)  # 15 evaluations: what a model can do shows, and it costs little
IMAGES, PIXELS = 48, 2**22  # at most, on one sheet


class Grids(Watcher):
    """RUN/samples/training/NNNNNNNNN.png, by images seen: samples of the first average at every snapshot.

    `grid_every` images: also in between; 0: none at all. Each sheet has the seeds 0, 1, ... and the same classes
    (a column each, up to 16) or label vectors and conditions (those of the first training samples), drawn by
    EDM's sampler in 8 steps; `ed.sample` gives the same from the snapshot. Images become a sheet of images, volumes
    their middle slices, points and signals a plot over some of the data.
    """

    def __init__(self, trackers: Trackers | None = None) -> None:
        self.trackers = trackers

    def start(self, trainer: Trainer, run: Path) -> None:
        """Choose seeds, labels and conditions."""
        self.folder, self.drawn = run / "samples" / "training", 0
        if trainer.config.grid_every == 0:
            return
        self.columns, n = layout(trainer)
        self.seeds = range(n)
        self.conditions = conditions_of_samples(trainer, n, self.columns)

    def step(self, trainer: Trainer, step: Step, seconds: float) -> None:
        """Draw when it is time."""
        if self.needs_model(trainer, step):
            self.draw(trainer)

    def needs_model(self, trainer: Trainer, step: Step) -> bool:
        """When it is time."""
        every = trainer.config.grid_every
        return bool(every) and step.images - self.drawn >= (every or 0)

    def snapshot(self, trainer: Trainer, folder: Path, seconds: float) -> None:
        """Draw what the snapshot would."""
        if trainer.config.grid_every != 0 and self.drawn != trainer.images_seen:
            self.draw(trainer)

    def state(self) -> State:
        """When the last one was drawn."""
        return State({}, {"drawn": self.drawn})

    def restore(self, state: State) -> None:
        """Remember it."""
        self.drawn = state.facts["drawn"]

    def draw(self, trainer: Trainer) -> None:
        """Sample, write the picture, tell the trackers."""
        model, batch = trainer.ema.module, trainer.config.batch
        x = sample(model, SAMPLER, seeds=self.seeds, batch_size=batch, **self.conditions).x
        path = self.folder / f"{trainer.images_seen:09d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, x, trainer, self.columns)
        self.drawn = trainer.images_seen
        if self.trackers is not None:
            self.trackers.picture(self.drawn, "samples", path)


def layout(trainer: Trainer) -> tuple[int, int]:
    """(columns, samples) of a sheet: a column a class, and few samples of many pixels."""
    shape = trainer.dataset.shape
    if len(shape) == 1:
        return 1, DOTS
    if len(shape) == 2:
        return 4, PANELS
    n = max(4, min(IMAGES, PIXELS // (shape[-1] * shape[-2])))
    classes = trainer.model.label_dim
    if trainer.model.vector_labels or not 1 < classes <= min(16, n):
        return max(2, round(n**0.5 * 1.2)), n
    return classes, n // classes * classes


def conditions_of_samples(trainer: Trainer, n: int, columns: int) -> dict[str, Any]:
    """The labels and conditions of n samples: classes by column, or dealt in turn; else those of training samples."""
    model, data = trainer.model, trainer.dataset
    rows = torch.arange(n) % len(data)
    y, vectors = data.batch(rows)
    conditions: dict[str, Any] = {}
    if model.label_dim:
        conditions["labels"] = vectors if model.vector_labels else torch.arange(n) % model.label_dim
    return conditions | image_condition(model, data, rows, y)


def write_picture(path: Path, x: Tensor, trainer: Trainer, columns: int) -> None:
    """Samples (B, *) as one PNG, over some of the data where they are no images."""
    decoded = trainer.ema.module.decode(x)  # type: ignore[operator]
    pixels, data = trainer.dataset.is_image or decoded is not x, trainer.dataset
    x = decoded.detach().cpu().double()
    if pixels:  # in [-1, 1] already
        write_images(path, x, columns)
        return
    rows = torch.arange(DOTS if x.ndim >= 4 else len(x)) % len(data)
    write_sheet(path, x, data.batch(rows)[0].double(), columns)
