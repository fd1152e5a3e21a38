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
from ..data import Dataset, check_sigma_data
from ..denoiser import Preconditioned
from ..design import Design
from ..files import refuse_existing
from ..models import save
from ..networks import for_shape, normalize_weights
from ..objective import loss_at
from ..progress import bar
from ..seeds import Stream, torch_seeded
from .config import TrainConfig
from .draws import Order, draw
from .ema import EMA, ema_beta

LOG_EVERY = 2_000  # images between two lines of metrics.jsonl, at least


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why. Snapshots written before are intact."""


@dataclass
class Trainer:
    """The live state of a run: the model in training, its average, the optimiser, the step."""

    config: TrainConfig
    design: Design
    dataset: Dataset
    model: Preconditioned
    ema: EMA
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
                config.network or for_shape(dataset.shape),
                design.preconditioning,
                shape=dataset.shape,
                label_dim=dataset.label_dim if config.conditional else 0,
            )
        model.to(config.device).train()
        betas = (config.beta1, config.beta2)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=betas, eps=config.adam_eps, foreach=True)
        return cls(config, design, dataset, model, EMA(model), optimizer, Order(len(dataset), config.seed))

    @property
    def images_seen(self) -> int:
        """How many images training has used so far, repeats included."""
        return self.step * self.config.batch

    def train_step(self) -> float:
        """One step of Adam on one batch; the mean loss. Raises TrainingError when it is not finite."""
        config = self.config
        normalize_weights(self.model.network)  # of magnitude-preserving networks; the forward pass never changes them
        noise = self.design.objective.noise
        drawn = draw(self.dataset, self.order, noise, self.step, config.batch, label_dropout=config.label_dropout)
        conditions = {"labels": drawn.labels} if self.model.label_dim and drawn.labels is not None else {}
        y, n = drawn.y.to(config.device), drawn.n.to(config.device)
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
            group["lr"] = config.lr * min((self.images_seen + config.batch) / max(config.lr_ramp, 1), 1)
        self.optimizer.step()
        self.ema.update(ema_beta(config.batch, config.ema_halflife, self.images_seen, config.ema_ramp))
        self.step += 1
        return loss.mean().item()

    def info(self, seconds: float) -> dict[str, Any]:
        """What model.json records about training and data."""
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
    folder = run / "snapshots" / _snapshot_name(trainer.step, trainer.config)
    average = cast("Preconditioned", trainer.ema.module)
    save(average, folder, design=trainer.design, info=trainer.info(seconds))
