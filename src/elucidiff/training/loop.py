"""The training loop of one process: Eq. 8, Adam, EMA; a run directory as its result."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from .. import data as datasets
from ..component import require
from ..data import Dataset, check_sigma_data
from ..denoiser import Preconditioned
from ..design import Design
from ..files import refuse_existing
from ..models import save
from ..networks import Network, for_shape, normalize_weights
from ..objective import loss_at
from ..progress import bar
from ..seeds import Stream, torch_seeded
from .config import TrainConfig
from .draws import Order, draw
from .ema import EMA, Averaging

LOG_EVERY = 2_000  # images between two lines of metrics.jsonl, at least


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why. Snapshots written before are intact."""


@dataclass
class Trainer:
    """The live state of a run: the model in training, its averages, the optimiser, the step."""

    config: TrainConfig
    design: Design
    dataset: Dataset
    model: Preconditioned
    averages: list[tuple[Averaging, EMA]]
    optimizer: torch.optim.Optimizer
    order: Order
    step: int = 0

    @classmethod
    def start(cls, config: TrainConfig, dataset: Dataset) -> Trainer:
        """A new run: sigma_data measured, network chosen and initialised from the seed."""
        sigma_data = config.sigma_data or dataset.sigma_data()
        check_sigma_data(sigma_data, dataset.sigma_data())
        design = config.design.with_sigma_data(sigma_data)
        with torch_seeded(config.seed, Stream.INIT):
            model = Preconditioned(
                _network(config, dataset.shape),
                design.preconditioning,
                shape=dataset.shape,
                label_dim=dataset.label_dim if config.conditional else 0,
            )
        model.to(config.device).train()
        betas = (config.beta1, config.beta2)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=betas, eps=config.adam_eps, foreach=True)
        averages = [(averaging, EMA(model)) for averaging in config.averages]
        return cls(config, design, dataset, model, averages, optimizer, Order(len(dataset), config.seed))

    @property
    def ema(self) -> EMA:
        """The first average, the model of a snapshot."""
        return self.averages[0][1]

    @property
    def images_seen(self) -> int:
        """How many images training has used so far, repeats included."""
        return self.step * self.config.batch

    def train_step(self) -> float:
        """One step of Adam on one batch; the mean loss. Raises TrainingError when it is not finite."""
        config = self.config
        normalize_weights(self.model.network)  # of magnitude-preserving networks; the forward pass never changes them
        noise = self.design.objective.noise
        options: dict[str, Any] = {"label_dropout": config.label_dropout, "augment": config.augment}
        drawn = draw(self.dataset, self.order, noise, self.step, config.batch, **options)
        conditions = {"labels": drawn.labels} if self.model.label_dim and drawn.labels is not None else {}
        y, n = drawn.y.to(config.device), drawn.n.to(config.device)
        if config.augment is not None:
            y, conditions["augment_labels"] = config.augment(y, parameters=drawn.augment)
        with torch_seeded(config.seed, Stream.NETWORK, self.step):  # dropout
            loss = loss_at(self.model, y, drawn.sigma, n, self.design.objective.weighting, **conditions)
        if not torch.isfinite(loss).all():
            bad = int((~torch.isfinite(loss)).nonzero()[0])
            raise TrainingError(
                f"step {self.step}: the loss is {loss[bad].item()} at sigma = {drawn.sigma[bad].item():.4g}; lower lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.images_seen + config.batch)
        self.optimizer.step()
        for averaging, ema in self.averages:
            ema.update(averaging.beta(config.batch, self.images_seen + config.batch))
        self.step += 1
        return loss.mean().item()

    def info(self, seconds: float, averaging: Averaging | None = None) -> dict[str, Any]:
        """What model.json records about training and data; of the average only where `ema` asked for it."""
        average = {"ema": averaging.to_dict()} if self.config.ema and averaging else {}
        data = self.dataset
        return {
            "data": {
                "name": data.name,
                "images": len(data),
                "range": [-1, 1] if data.is_image else None,
                "sigma_data": data.sigma_data(),
                "classes": data.classes,
                "fingerprint": data.fingerprint(),
                "heldout": self.config.heldout,
            },
            "training": {
                "images_seen": self.images_seen,
                "seconds": round(seconds, 1),
                "config": self.config.to_dict(),
                **average,
            },
        }


def train(config: TrainConfig, *, data: Dataset | None = None, progress: bool = False) -> Path:
    """Train a model and write a run directory: config.json, metrics.jsonl, snapshots/NNNNNN (EMA models, by kimg).

    `data` replaces loading `config.data`; with `heldout` above 0 its held-out part is not trained on.
    Raises FileExistsError when the run directory has something in it.
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
    with bar("training", progress) as report, (run / "metrics.jsonl").open("w", encoding="utf-8") as log:
        started = time.perf_counter()
        since: list[float] = []
        for i in range(config.steps):
            since.append(trainer.train_step())
            done, seconds = i + 1, time.perf_counter() - started
            last = done == config.steps
            if len(since) * config.batch >= LOG_EVERY or last:
                line = {"images": trainer.images_seen, "loss": sum(since) / len(since), "seconds": round(seconds, 2)}
                log.write(json.dumps(line) + "\n")
                log.flush()
                speed = trainer.images_seen / seconds
                report(
                    done * config.batch, config.steps * config.batch, f"loss {line['loss']:.4g}, {speed:,.0f} images/s"
                )
                since.clear()
            if _snapshot_due(done, config):
                _save_snapshot(trainer, run, seconds)
    return run


def _network(config: TrainConfig, shape: tuple[int, ...]) -> Network:
    """The network to train, told of the augmentation. Raises ValueError where data, augmentation and it do not fit."""
    network = config.network or for_shape(shape)
    if config.augment is None:
        return network
    config.augment.check(shape)
    label_dim = config.augment.label_dim
    require(
        network.augment_dim in (0, label_dim),
        f"network.augment_dim: got {network.augment_dim}, but the augmentation has {label_dim} label entries; "
        "leave it out, or use augment=edm, which has the published 9",
    )
    return network.replace(augment_dim=label_dim)


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
