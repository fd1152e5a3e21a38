"""The training loop of one process: from a configuration to a run directory."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from .. import data as datasets
from ..data import Dataset
from ..denoiser import Preconditioned
from ..files import refuse_existing
from ..models import save
from ..progress import bar
from .checkpoint import Pace, remove_leftovers, set_aside, write
from .config import TrainConfig
from .grids import Grids
from .heldout import HeldOut
from .interruption import Interruption, TrainingStopped, locked
from .levels import LossBySigma
from .ranks import together
from .resume import agreed, check_same, clear_the_way, restore, restore_watchers, whole_state
from .trackers import Trackers
from .trainer import Trainer
from .watch import Bar, MetricsLog, Watcher

CONFIG = "config.json"


def train(
    config: TrainConfig,
    *,
    data: Dataset | None = None,
    progress: bool = False,
    watchers: Sequence[Watcher] = (),
    resume: bool = False,
    allow_changes: bool = False,
    time_limit: float | None = None,
) -> Path:
    """Train a model and write a run directory: config.json, snapshots/NNNNNN (EMA models, by kimg), and what was seen.

    That is metrics.jsonl and loss_by_sigma.jsonl, samples/training (pictures, by images), scores.jsonl where data are
    held out, tensorboard (all of it). checkpoint/ has the full state, the last two, for going on.

    Started by torchrun, the processes share each batch, of which every one works through its `accumulate` / processes
    parts; the first writes all files. With powers of two, any number of them gives the same bits on CPUs.

    Args:
        config: what to train; `out` is the run directory.
        data: replaces loading `config.data`. With `heldout` above 0 the held-out part is not trained on.
        progress: a bar on terminals, and every score as a line of stderr.
        watchers: are shown every step.
        resume: go on with the run that is there, from its newest good checkpoint: the result has the bits of a run that
            never stopped. Without a run there it begins. `config` may ask for more images, and for other watching.
        allow_changes: let the rest of a resumed run have another configuration.
        time_limit: seconds after which it stops as if by SIGTERM or SIGINT: the state is saved.

    Raises:
        FileExistsError: when the run directory has something in it, and `resume` was not asked for.
        ValueError: where configuration or data are not those of the run that is there.
        NoGoodCheckpoint: where all its checkpoints are damaged.
        RuntimeError: where another process trains in this folder.
        TrainingStopped: after a signal or the time limit.
        TrainingError: where nothing is finite any more; the last checkpoint is intact.
        MissingExtraError: for a tracker that is absent.
    """
    with ExitStack() as stack:
        ranks, device = stack.enter_context(together(config.device))
        first = ranks.first
        run, say = Path(config.out), _sayer(progress and first)
        trackers = Trackers(config)
        with bar("reading data", progress and first) as report:
            dataset = data if data is not None else datasets.load(config.data, report)
        heldout = None
        if config.heldout:
            dataset, heldout = dataset.split(config.heldout)
        if first:
            _check_place(run, config, resume, allow_changes)
        trainer = Trainer.start(config.replace(device=device), dataset, ranks)
        if first:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(run))
        found = agreed(run, ranks, device, say)
        seconds = restore(trainer, found)
        everyone: list[Watcher] = []
        if first:
            config.save(run / CONFIG)
            remove_leftovers(run)
            clear_the_way(run, found, say)
            report = stack.enter_context(bar("training", progress))
            everyone = [trackers, Bar(report), *_standard(trackers, heldout, say), *watchers]
        for watcher in everyone:
            watcher.start(trainer, run)
            stack.callback(watcher.close)
        if found is not None:
            restore_watchers(found, everyone)
            say(f"going on after {trainer.images_seen:,} images")
        stop = stack.enter_context(Interruption(time_limit).listening())
        _steps(trainer, run, everyone, stop, seconds)
    return run


def _check_place(run: Path, config: TrainConfig, resume: bool, allow_changes: bool) -> None:
    """Raise where the run cannot be written, or go on, at this place."""
    if not resume:
        refuse_existing(run)
    elif (run / CONFIG).is_file():
        check_same(TrainConfig.load(run / CONFIG), config, allow_changes)
    elif run.is_dir() and any(path.name != "lock" and path.name[0] != "." for path in run.iterdir()):
        raise FileExistsError(f"{run} has something in it, but no {CONFIG}: not a run to resume; name another place")


def _steps(trainer: Trainer, run: Path, watchers: Sequence[Watcher], stop: Interruption, before: float) -> None:
    """All steps that are left; `before`: seconds that the run took already."""
    config, ranks, started = trainer.config, trainer.ranks, time.perf_counter()
    pace = Pace(config.checkpoint_every, trainer.images_seen)
    while trainer.step < config.steps:
        step = trainer.train_step()
        seconds = before + time.perf_counter() - started
        for watcher in watchers:
            watcher.step(trainer, step, seconds)
        if ranks.first and _snapshot_due(trainer.step, config):
            folder = _save_snapshot(trainer, run, seconds)
            for watcher in watchers:
                watcher.snapshot(trainer, folder, seconds)
        last = trainer.step == config.steps
        ends = not last and ranks.highest(bool(stop.asked()), config.device)  # where one is asked to, all stop
        if ranks.first and config.checkpoint_every != 0 and (last or ends or pace.due(step.images)):
            began = time.perf_counter()
            write(run, step.images, whole_state(trainer, watchers, seconds))
            pace.wrote(step.images, time.perf_counter() - began)
        if ends:
            kept = "nothing was saved" if config.checkpoint_every == 0 else "the state is saved; resume goes on"
            reason = stop.reason or "another rank"
            raise TrainingStopped(f"{run}: stopped by {reason} after {step.images:,} images; {kept}")


def _sayer(progress: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        if progress:
            print(text, file=sys.stderr)  # above the bar, where there is one

    return say


def _standard(trackers: Trackers, heldout: Dataset | None, say: Callable[[str], None]) -> list[Watcher]:
    """What watches every run, and tells the trackers."""
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
        if folder.exists() and not _same_snapshot(folder, trainer):
            set_aside(run, folder)
        if not folder.exists():
            info = trainer.info(seconds, averaging)
            save(cast("Preconditioned", ema.module), folder, design=trainer.design, info=info)
    return home / name


def _same_snapshot(folder: Path, trainer: Trainer) -> bool:
    """Whether a snapshot was written by this run before it was interrupted: then it has the same bits."""
    training = json.loads((folder / "model.json").read_text(encoding="utf-8"))["info"]["training"]
    stored = TrainConfig.from_dict(training["config"])
    return bool(training["images_seen"] == trainer.images_seen and not stored.differences(trainer.config))
