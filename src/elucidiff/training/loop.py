"""The training loop of one process: from a configuration to a run directory."""

from __future__ import annotations

import math
import sys
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
from .grids import Grids
from .heldout import HeldOut
from .levels import LossBySigma
from .trackers import Trackers
from .trainer import Trainer
from .watch import Bar, MetricsLog, Watcher


def train(
    config: TrainConfig, *, data: Dataset | None = None, progress: bool = False, watchers: Sequence[Watcher] = ()
) -> Path:
    """Train a model and write a run directory: config.json, snapshots/NNNNNN (EMA models, by kimg), and what was seen.

    That is metrics.jsonl and loss_by_sigma.jsonl, samples/training (pictures, by images), scores.jsonl where data are
    held out, tensorboard (all of it). `data` replaces loading `config.data`; with `heldout` above 0 its held-out part
    is not trained on. `watchers` are shown every step. progress: a bar on terminals, and every score as a line of
    stderr.
    Raises FileExistsError when the run directory has something in it, MissingExtraError for a tracker that is absent.
    """
    run = Path(config.out)
    refuse_existing(run)
    trackers = Trackers(config)
    with bar("reading data", progress) as report:
        dataset = data if data is not None else datasets.load(config.data, report)
    heldout = None
    if config.heldout:
        dataset, heldout = dataset.split(config.heldout)
    trainer = Trainer.start(config, dataset)
    run.mkdir(parents=True, exist_ok=True)
    config.save(run / "config.json")
    with ExitStack() as stack:
        report = stack.enter_context(bar("training", progress))
        everyone = [trackers, Bar(report), *_standard(trackers, heldout, progress), *watchers]
        for watcher in everyone:
            watcher.start(trainer, run)
            stack.callback(watcher.close)
        started = time.perf_counter()
        for done in range(1, config.steps + 1):
            step = trainer.train_step()
            seconds = time.perf_counter() - started
            for watcher in everyone:
                watcher.step(trainer, step, seconds)
            if _snapshot_due(done, config):
                folder = _save_snapshot(trainer, run, seconds)
                for watcher in everyone:
                    watcher.snapshot(trainer, folder, seconds)
    return run


def _standard(trackers: Trackers, heldout: Dataset | None, progress: bool) -> list[Watcher]:
    """What watches every run, and tells the trackers."""

    def say(text: str) -> None:
        if progress:
            print(text, file=sys.stderr)  # above the bar, where there is one

    found: list[Watcher] = [MetricsLog(trackers), LossBySigma(trackers), Grids(trackers)]
    return found if heldout is None else [*found, HeldOut(heldout, trackers, say)]


def _snapshot_due(done: int, config: TrainConfig) -> bool:
    """Snapshots divide the run evenly and include its end; of those that would share a name the last is written."""
    if done == config.steps:
        return True
    evenly = done * config.snapshots // config.steps > (done - 1) * config.snapshots // config.steps
    following = math.ceil(config.steps * (done * config.snapshots // config.steps + 1) / config.snapshots)
    return evenly and _snapshot_name(done, config) != _snapshot_name(following, config)


def _snapshot_name(steps: int, config: TrainConfig) -> str:
    return f"{steps * config.batch // 1000:06d}"


def _save_snapshot(trainer: Trainer, run: Path, seconds: float) -> Path:
    """snapshots/NNNNNN, the first average; snapshots/NNNNNN-0.100 and so on the others, which are written before it."""
    home, name = run / "snapshots", _snapshot_name(trainer.step, trainer.config)
    for averaging, ema in reversed(trainer.averages):
        folder = home / (name if ema is trainer.ema else f"{name}-{averaging.name}")
        save(cast("Preconditioned", ema.module), folder, design=trainer.design, info=trainer.info(seconds, averaging))
    return home / name
