"""The training loop of one process: from a configuration to a run directory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from .. import data as datasets
from ..data import Dataset
from ..denoiser import Preconditioned
from ..files import refuse_existing
from ..models import save
from ..progress import bar
from .config import TrainConfig
from .trainer import Trainer
from .watch import MetricsLog, Watcher

SHOW_EVERY = 1_000  # images between two changes of the progress bar, at least


def train(
    config: TrainConfig, *, data: Dataset | None = None, progress: bool = False, watchers: Sequence[Watcher] = ()
) -> Path:
    """Train a model and write a run directory: config.json, metrics.jsonl, snapshots/NNNNNN (EMA models, by kimg).

    `data` replaces loading `config.data`; with `heldout` above 0 its held-out part is not trained on. `watchers` are
    shown every step. Raises FileExistsError when the run directory has something in it.
    """
    run = Path(config.out)
    refuse_existing(run)
    with bar("reading data", progress) as report:
        dataset = data if data is not None else datasets.load(config.data, report)
    if config.heldout:
        dataset, _ = dataset.split(config.heldout)
    trainer = Trainer.start(config, dataset)
    run.mkdir(parents=True, exist_ok=True)
    config.save(run / "config.json")
    with ExitStack() as stack:
        report = stack.enter_context(bar("training", progress))
        everyone = [MetricsLog(), *watchers]
        for watcher in everyone:
            watcher.start(trainer, run)
            stack.callback(watcher.close)
        started, shown = time.perf_counter(), 0
        for done in range(1, config.steps + 1):
            step = trainer.train_step()
            seconds = time.perf_counter() - started
            for watcher in everyone:
                watcher.step(trainer, step, seconds)
            if step.images - shown >= SHOW_EVERY or done == config.steps:
                text = f"loss {step.loss:.4g}, {step.images / seconds:,.0f} images/s"
                report(step.images, config.steps * config.batch, text)
                shown = step.images
            if _snapshot_due(done, config):
                _save_snapshot(trainer, run, seconds)
    return run


def _snapshot_due(done: int, config: TrainConfig) -> bool:
    """Snapshots divide the run evenly and include its end; of those that would share a name the last is written."""
    if done == config.steps:
        return True
    evenly = done * config.snapshots // config.steps > (done - 1) * config.snapshots // config.steps
    following = math.ceil(config.steps * (done * config.snapshots // config.steps + 1) / config.snapshots)
    return evenly and _snapshot_name(done, config) != _snapshot_name(following, config)


def _snapshot_name(steps: int, config: TrainConfig) -> str:
    return f"{steps * config.batch // 1000:06d}"


def _save_snapshot(trainer: Trainer, run: Path, seconds: float) -> None:
    """snapshots/NNNNNN, the first average; snapshots/NNNNNN-0.100 and so on the others, which are written before it."""
    name = _snapshot_name(trainer.step, trainer.config)
    for averaging, ema in reversed(trainer.averages):
        folder = run / "snapshots" / (name if ema is trainer.ema else f"{name}-{averaging.name}")
        save(cast("Preconditioned", ema.module), folder, design=trainer.design, info=trainer.info(seconds, averaging))
