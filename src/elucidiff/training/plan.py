"""What a run will take, before it is started: memory, time, disk, and what follows from the data."""

from __future__ import annotations

import math
import shutil
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..component import require
from ..data import Dataset
from ..networks import Network
from ..progress import Report, silent
from .config import TrainConfig
from .ema import HalfLife
from .optimizers import moments_of
from .prefetch import prefetched
from .trainer import Trainer

PATIENCE = 120.0  # seconds after which a probe makes no further step, from two on
AUGMENTED = 4096  # samples whose parameters say how many an augmentation leaves as they are
FEWEST_PLAIN = 0.05  # of the samples; with fewer, the network hardly learns what sampling asks it for


@dataclass(frozen=True)
class Memory:
    """Bytes. Those of weights, gradients, the optimiser's moments and averages are exact.

    activations: what a step needs beside them. On CUDA the measured peak less the other four, temporary tensors
    included; elsewhere (`measured` false) an estimate from below, of the storages kept for the backward pass. None
    without a probe.
    """

    weights: int
    gradients: int
    moments: int
    averages: int
    activations: int | None
    measured: bool

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.moments + self.averages + (self.activations or 0)


@dataclass(frozen=True)
class Plan:
    """What a configuration and a data set amount to.

    network: its configuration. samples, heldout: of the data, trained on and kept back. sigma_data: used; measured: of
    the data. images, steps, epochs: of the run, images being repeats included. batch is worked through in `accumulate`
    parts. lr_end: at the last step. averages: by name.
    step_seconds: the median of a probe, whose first quarter is thrown away; seconds: of all steps at that, without
    what is measured and written beside them; first_step: seconds, compilation included. None without a probe.
    snapshots, disk: how many are written, and bytes of their weights, all averages.
    """

    network: dict[str, Any]
    parameters: int
    data: str
    samples: int
    heldout: int
    shape: tuple[int, ...]
    classes: int
    sigma_data: float
    measured: float
    images: int
    steps: int
    epochs: float
    batch: int
    accumulate: int
    precision: str
    optimizer: str
    lr: float
    lr_ramp: int
    lr_end: float
    averages: tuple[str, ...]
    memory: Memory
    first_step: float | None
    step_seconds: float | None
    seconds: float | None
    images_per_second: float | None
    snapshots: int
    disk: int
    device: str
    threads: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON data, with the total of its memory."""
        data = asdict(self) | {name: list(getattr(self, name)) for name in ("shape", "averages", "warnings")}
        data["memory"]["total"] = self.memory.total
        return data


def plan(config: TrainConfig, dataset: Dataset, probe_steps: int = 20, *, report: Report = silent) -> Plan:
    """What `train(config, data=dataset)` will take. Writes nothing, and changes nothing for the run that follows.

    Makes the run's first `probe_steps` steps (fewer where they take minutes), and one more for its memory, on a trainer
    that is then thrown away; 0: no step, and neither times nor activations. Raises what `train` would for a
    configuration that does not fit.
    """
    require(probe_steps >= 0, f"probe_steps: got {probe_steps}; expected a number of steps, 0 for no probe")
    whole = len(dataset)
    if config.heldout:
        dataset, _ = dataset.split(config.heldout)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        trainer = Trainer.start(config, dataset)
    with prefetched(trainer):
        times = _timed(trainer, probe_steps, report)
    step = statistics.median(times[len(times) // 4 :]) if times else None
    memory = _memory(trainer, probed=bool(times))
    snapshots = _snapshots(config)
    disk = snapshots * len(trainer.averages) * _bytes(trainer.model.network.state_dict().values())
    network, sigma_data = cast("Network", trainer.model.network_config), trainer.design.sigma_data
    return Plan(
        network=network.to_dict(),
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        data=dataset.name,
        samples=len(dataset),
        heldout=whole - len(dataset),
        shape=dataset.shape,
        classes=trainer.model.label_dim,
        sigma_data=sigma_data or dataset.sigma_data(),
        measured=dataset.sigma_data(),
        images=config.steps * config.batch,
        steps=config.steps,
        epochs=config.steps * config.batch / len(dataset),
        batch=config.batch,
        accumulate=config.accumulate,
        precision=config.precision,
        optimizer=config.optimizer,
        lr=config.lr,
        lr_ramp=config.lr_ramp,
        lr_end=config.lr_at(config.steps * config.batch),
        averages=tuple(averaging.name for averaging in config.averages),
        memory=memory,
        first_step=times[0] if times else None,
        step_seconds=step,
        seconds=step and step * config.steps,
        images_per_second=step and config.batch / step,
        snapshots=snapshots,
        disk=disk,
        device=config.device,
        threads=torch.get_num_threads(),
        warnings=(*(str(w.message) for w in raised), *_warnings(config, dataset, snapshots), *_no_room(config, disk)),
    )


def _timed(trainer: Trainer, steps: int, report: Report) -> list[float]:
    """Seconds of each of the first steps. A step ends by reading its loss, for which a GPU has to be done."""
    times = []
    for done in range(steps):
        started = time.perf_counter()
        trainer.train_step()
        times.append(time.perf_counter() - started)
        report(done + 1, steps, f"{trainer.config.batch / times[-1]:,.0f} images/s")
        if done and sum(times) > PATIENCE:
            break
    return times


# Memory


def _memory(trainer: Trainer, *, probed: bool) -> Memory:
    trained = [p for p in trainer.parameters if p.requires_grad]
    beside = list(trainer.uncertainty.parameters()) if trainer.uncertainty is not None else []
    weights = _bytes({id(t): t for t in (*trainer.model.parameters(), *trainer.model.buffers(), *beside)}.values())
    gradients = _bytes(trained)
    moments = _bytes(p for p in trained for _ in moments_of(trainer.config, p))
    moments += 4 * len(trained)  # a float32 counts the steps of each tensor
    averages = sum(_bytes((*ema.module.parameters(), *ema.module.buffers())) for _, ema in trainer.averages)
    on_cuda = torch.device(trainer.config.device).type == "cuda"
    activations = None
    if probed:
        activations = _cuda_peak(trainer) if on_cuda else _kept_for_backward(trainer)
        if on_cuda:
            activations = max(activations - weights - gradients - moments - averages, 0)
    return Memory(weights, gradients, moments, averages, activations, probed and on_cuda)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _cuda_peak(trainer: Trainer) -> int:
    """The most bytes of tensors there were during one step."""
    device = torch.device(trainer.config.device)
    torch.cuda.reset_peak_memory_stats(device)
    trainer.train_step()
    return torch.cuda.max_memory_allocated(device)


def _kept_for_backward(trainer: Trainer) -> int:
    """The most bytes that autograd kept at one time during one step, weights aside."""
    with _tally({p.untyped_storage().data_ptr() for p in trainer.parameters}) as tally:
        trainer.train_step()
    return tally.peak


class _Tally:
    """Bytes of distinct storages that are kept now, and the most there were."""

    def __init__(self, excluded: set[int]) -> None:
        self.excluded, self.counts = excluded, dict[int, int]()
        self.bytes = self.peak = 0

    def change(self, tensor: Tensor, by: int) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.excluded:
            return
        before = self.counts.get(key, 0)
        self.counts[key] = before + by
        self.bytes += storage.nbytes() * ((before + by > 0) - (before > 0))
        self.peak = max(self.peak, self.bytes)


class _Kept:
    """A tensor that autograd keeps, counted for as long as it does: no other storage has its address meanwhile."""

    def __init__(self, tensor: Tensor, tally: _Tally) -> None:
        self.tensor, self.tally = tensor, tally
        tally.change(tensor, 1)

    def __del__(self) -> None:
        self.tally.change(self.tensor, -1)


@contextmanager
def _tally(excluded: set[int]) -> Iterator[_Tally]:
    tally = _Tally(excluded)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: _Kept(t, tally), lambda kept: kept.tensor):
        yield tally


# Disk


def _snapshots(config: TrainConfig) -> int:
    """How many are written: those that would share a name, the thousands of images, are one."""
    evenly = (math.ceil(config.steps * k / config.snapshots) for k in range(1, config.snapshots + 1))
    return len({steps * config.batch // 1000 for steps in evenly})


def _no_room(config: TrainConfig, disk: int) -> Iterator[str]:
    path = Path(config.out).absolute()
    folder = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if disk > free:
        yield f"disk: the snapshots take {disk / 1e9:.3g} GB, {folder} has {free / 1e9:.3g} GB left"


# Warnings


def _warnings(config: TrainConfig, dataset: Dataset, snapshots: int) -> Iterator[str]:
    """What will not do what it seems to, as sentences with a remedy."""
    images, n = config.images, len(dataset)
    for averaging in config.averages:
        if isinstance(averaging, HalfLife) and averaging.halflife > images / 5:
            window = math.inf if averaging.ramp is None else averaging.ramp * images
            held = f"ema_ramp holds it below {window:,.0f}"
            remedy = held if window < images / 5 else f"choose about {images / 10:,.0f}"
            halflife = f"ema_halflife: {averaging.halflife:,.0f} images"
            yield f"{halflife} are more than a fifth of the run's {images:,}; {remedy}"
    if config.lr_ramp > images / 10:
        yield (
            f"lr_ramp: {config.lr_ramp:,} images are more than a tenth of the run's {images:,}, in which the learning "
            "rate is below lr"
        )
    if config.batch > n:
        yield f"batch: {config.batch} is more than the {n} samples there are, so that each step sees some of them twice"
    if not config.heldout:
        yield "heldout: 0, so that nothing will show memorised samples; 0.1 keeps a tenth of the data back"
    if config.label_dropout and not (config.conditional and dataset.label_dim):
        yield f"label_dropout: {config.label_dropout:g} drops nothing, since no labels are trained on"
    if snapshots < config.snapshots:
        yield f"snapshots: {snapshots} instead of {config.snapshots}, since they are named by thousands of images"
    yield from _leaks(config)


def _leaks(config: TrainConfig) -> Iterator[str]:
    """Sampling asks for samples that nothing was done to: without such in training, what was done shows in them."""
    augment = config.augment
    if augment is None:
        return
    drawn = augment.draw(config.seed, 0, range(AUGMENTED))
    plain = {kind: (w == 0).all(1) for kind, w in drawn.items()}
    for kind, untouched in plain.items():
        if (part := untouched.double().mean().item()) < FEWEST_PLAIN:
            yield f"augment.{kind}: leaks into samples, since only {100 * part:.2g} % stay without it; lower its p"
            return
    part = torch.stack(list(plain.values())).all(0).double().mean().item()
    if part < FEWEST_PLAIN:
        yield f"augment.p: leaks into samples, since only {100 * part:.2g} % stay as they are; lower p, e.g. to 0.12"
