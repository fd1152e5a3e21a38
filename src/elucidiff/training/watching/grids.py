"""Samples from the same seeds again and again while a model trains: one sees it learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...data.writing import contact_sheet, write_image
from ...design import EDM
from ...request import image_condition
from ...sampler import Sampler, sample
from ..checkpoint import State
from ..trainer import Step, Trainer
from .watch import Watcher

if TYPE_CHECKING:
    from .trackers import Trackers

SAMPLER: Sampler = EDM.sampler.replace(steps=8)  # 15 evaluations: what a model can do shows, and it costs little
IMAGES, PIXELS, DOTS, PANELS = 48, 2**22, 256, 12  # at most, on one sheet
SIDE, EDGE = 384, 8  # pixels: of a plot, and of the white around what it shows
READABLE = 32  # pixels: images below half of this height are enlarged
GREY, BLUE = "#c9ced4", "#0072B2"


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
    """Samples (B, *) as one PNG."""
    decoded = trainer.ema.module.decode(x)  # type: ignore[operator]
    pixels = trainer.dataset.is_image or decoded is not x  # in [-1, 1] already
    x = decoded.detach().cpu().double().nan_to_num(nan=1.0)
    if x.ndim >= 4:
        y = trainer.dataset.batch(range(min(DOTS, len(trainer.dataset))))[0].double()
        images = _images(x if pixels else _scaled(x, y))
        factor = max(1, READABLE // images.shape[-2])
        write_image(path, contact_sheet(images.repeat_interleave(factor, -2).repeat_interleave(factor, -1), columns, 2))
        return
    y = trainer.dataset.batch(torch.arange(len(x)) % len(trainer.dataset))[0].double()
    (_plot_points if x.ndim == 2 else _plot_signals)(path, x, y, columns)


def _scaled(x: Tensor, y: Tensor) -> Tensor:
    """The samples x, with the range of the data y mapped to [-1, 1]."""
    low, high = y.min(), y.max()
    return 2 * (x - low) / (high - low).clamp(min=1e-12) - 1


def _images(x: Tensor) -> Tensor:
    """(B, C, *size, H, W) as images (B, 1 or 3, H, W): the middle of what is no side of an image, one grey channel."""
    while x.ndim > 4:
        x = x[:, :, x.shape[2] // 2]
    return x if x.shape[1] in (1, 3) else x[:, :1]


def _plot_points(path: Path, x: Tensor, y: Tensor, columns: int) -> None:
    """The first two numbers of samples (blue) and data (grey); of one number its distribution function."""
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(sheet)
    x, y = (_pairs(points) for points in (x, y))
    for points, colour, radius in ((_scaled_axes(y, y), GREY, 2), (_scaled_axes(x, y), BLUE, 2)):
        for right, up in points.tolist():
            if max(abs(right), abs(up)) <= 1:
                a, b = SIDE / 2 * (1 + right), SIDE / 2 * (1 - up)
                draw.ellipse((a - radius, b - radius, a + radius, b + radius), fill=colour)
    sheet.save(path, format="PNG")


def _pairs(x: Tensor) -> Tensor:
    """(B, d) as points (B, 2); of d = 1 the number and the fraction of numbers below it."""
    if x.shape[1] > 1:
        return x[:, :2]
    return torch.stack([x[:, 0].sort().values, torch.linspace(0, 1, len(x), dtype=x.dtype)], 1)


def _scaled_axes(x: Tensor, y: Tensor) -> Tensor:
    """Each column of x with the middle 99 % of y's in [-0.8, 0.8]."""
    low, high = y.quantile(0.005, dim=0), y.quantile(0.995, dim=0)
    return 0.8 * (2 * (x - low) / (high - low).clamp(min=1e-12) - 1)


def _plot_signals(path: Path, x: Tensor, y: Tensor, columns: int) -> None:
    """A panel each: the first channel of a sample (blue) over that of a sample of the data (grey)."""
    from PIL import Image, ImageDraw

    width, height = SIDE // 2, SIDE // 4
    sheet = Image.new("RGB", (columns * width, -(-len(x) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, pair in enumerate(zip(_scaled(y, y)[:, 0], _scaled(x, y)[:, 0], strict=True)):
        left, top = i % columns * width + EDGE, i // columns * height + EDGE
        for signal, colour in zip(pair, (GREY, BLUE), strict=True):
            across = torch.linspace(0, width - 2 * EDGE, len(signal))
            down = (1 - signal.clamp(-1.2, 1.2) / 1.2) / 2 * (height - 2 * EDGE)
            draw.line([(left + a, top + b) for a, b in zip(across.tolist(), down.tolist(), strict=True)], fill=colour)
    sheet.save(path, format="PNG")
