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
from ..data import DataLike, Dataset, Mapped
from ..denoiser import Preconditioned
from ..files import refuse_existing, write_atomically
from ..models import save
from ..progress import Report, bar
from .checkpoint import Pace, remove_leftovers, saying_what_is_full, set_aside
from .config import TrainConfig
from .interruption import Interruption, TrainingStopped, locked
from .prefetch import prefetched
from .ranks import Ranks, together
from .resume import agreed, check_same, clear_the_way, restore, restore_watchers, whole_state
from .rounds import due, model_for, save_state, takes_part
from .trainer import Trainer
from .watching.grids import Grids
from .watching.heldout import HeldOut
from .watching.levels import LossBySigma
from .watching.trackers import Trackers
from .watching.watch import Bar, MetricsLog, Watcher

CONFIG = "config.json"
STOPPED = "stopped"  # a file of a run that was asked to stop and is to go on; a job's script looks for it


def train(
    config: TrainConfig,
    *,
    data: DataLike | None = None,
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
        data: replaces loading `config.data`: a Dataset, an array, whatever `ed.data.dataset_of` takes.
            With `heldout` above 0 the held-out part is not trained on.
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
        TrainingStopped: after a signal or the time limit; a file RUN/stopped says so until the run goes on.
        TrainingError: where nothing is finite any more; the last checkpoint is intact.
        OutOfMemory: where a step does not fit into memory; the message says what to change.
        FormatError: for a file of the data that cannot be read, by name.
        MissingExtraError: for a tracker that is absent.
    """
    with together(config.device) as (ranks, device):
        return _train(config, ranks, device, data, progress, watchers, resume, allow_changes, time_limit)


def _train(
    config: TrainConfig,
    ranks: Ranks,
    device: str,
    data: DataLike | None,
    progress: bool,
    watchers: Sequence[Watcher],
    resume: bool,
    allow_changes: bool,
    time_limit: float | None,
) -> Path:
    """`train`, of one of the ranks. When it returns nothing of the process group is left but the group itself."""
    with ExitStack() as stack:
        first = ranks.first
        run, say = Path(config.out), _sayer(progress and first)
        trackers = Trackers(config)
        with bar("reading data", progress and first) as report:
            dataset = _read(config, data, report)
        heldout = None
        if config.heldout:
            dataset, heldout = dataset.split(config.heldout)
        if first:
            _check_place(run, config, resume, allow_changes)
        if isinstance(dataset, Mapped):
            say(dataset.told())
        trainer = Trainer.start(config.replace(device=device), dataset, ranks)
        if first:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(run))
            stack.enter_context(saying_what_is_full(run))
        found = agreed(run, ranks, device, say, sharded=trainer.weights.sharded)
        seconds = restore(trainer, found)
        everyone: list[Watcher] = []
        if first:
            config.save(run / CONFIG)
            (run / STOPPED).unlink(missing_ok=True)
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
        stack.enter_context(prefetched(trainer))
        _steps(trainer, run, everyone, stop, seconds)
    return run


def _read(config: TrainConfig, data: DataLike | None, report: Report) -> Dataset:
    if data is None:
        return datasets.load(config.data, report, cache=config.cache, on_bad_data=config.on_bad_data)
    dataset = datasets.dataset_of(data)
    return dataset.skipping() if config.on_bad_data == "skip" else dataset


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
        with model_for(watchers, trainer, step):
            for watcher in watchers:
                watcher.step(trainer, step, seconds)
        if takes_part(trainer) and _snapshot_due(trainer.step, config):
            _save_snapshot(trainer, run, watchers, seconds)
        last = trainer.step == config.steps
        ends = not last and ranks.highest(bool(stop.asked()), config.device)  # where one is asked to, all stop
        if config.checkpoint_every != 0 and (last or ends or due(pace, trainer)) and takes_part(trainer):
            began = time.perf_counter()
            save_state(run, trainer, whole_state(trainer, watchers, seconds))
            pace.wrote(step.images, time.perf_counter() - began)
        if ends:
            kept = "nothing was saved" if config.checkpoint_every == 0 else "the state is saved; resume goes on"
            message = f"stopped by {stop.reason or 'another rank'} after {step.images:,} images; {kept}"
            if ranks.first:
                write_atomically(run / STOPPED, f"{message}\n".encode())
            raise TrainingStopped(f"{run}: {message}")


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


def _save_snapshot(trainer: Trainer, run: Path, watchers: Sequence[Watcher], seconds: float) -> None:
    """snapshots/NNNNNN, the first average; snapshots/NNNNNN-0.100 and so on the others, which are written before it.

    Then the watchers see it. The first rank writes; of sharded weights the others send their pieces.
    """
    home, name = run / "snapshots", _snapshot_name(trainer.step, trainer.config)
    for averaging, ema in reversed(trainer.averages):
        with ema.together():
            if not trainer.ranks.first:
                continue
            folder = home / (name if ema is trainer.ema else f"{name}-{averaging.name}")
            if folder.exists() and not _same_snapshot(folder, trainer):
                set_aside(run, folder)
            if not folder.exists():
                info = trainer.info(seconds, averaging)
                save(cast("Preconditioned", ema.whole), folder, design=trainer.design, info=info)
            for watcher in watchers if ema is trainer.ema else ():
                watcher.snapshot(trainer, folder, seconds)


def _same_snapshot(folder: Path, trainer: Trainer) -> bool:
    """Whether a snapshot was written by this run before it was interrupted: then it has the same bits."""
    training = json.loads((folder / "model.json").read_text(encoding="utf-8"))["info"]["training"]
    stored = TrainConfig.from_dict(training["config"])
    return bool(training["images_seen"] == trainer.images_seen and not stored.differences(trainer.config))
