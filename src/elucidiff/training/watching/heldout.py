"""Scores of a model while it trains, on data that it does not see: its held-out loss, and of its samples if asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...data import Dataset
from ...denoiser import evaluation_mode
from ...objective import loss_at
from ...request import asked_by_data, image_condition
from ...sampler import sample
from ...seeds import Stream, keyed, keyed_normal
from ..checkpoint import State
from ..trainer import Step, Trainer
from .grids import SAMPLER
from .watch import JsonLines

if TYPE_CHECKING:
    from .trackers import Trackers

LOOKS, BINS = 512, 8  # evaluations of the network, of each of the two sets; parts of equal weight they are shown in

Say = Callable[[str], None]


class HeldOut(JsonLines):
    """scores.jsonl: the loss of the first average on held-out and on training samples, at every snapshot.

    `score_every` images: also in between; 0: never. Both losses have the same 512 noise levels, spread evenly over the
    training distribution, and the same noise, the same each time; each is a mean over the levels of
    lambda ||D - y||^2 / d. Their difference, the gap, is what the model remembers of its training samples.

    images, seconds, snapshot (its name, or null), heldout, training, gap, and the standard errors heldout_error and
    gap_error, which say how other samples and noise would differ, not how two lines do; by eighths of the noise
    distribution sigma, heldout_by_sigma, training_by_sigma. With `scores` also those, each with real data's (fd,
    fd_real, ...), of `score_num` samples against the held-out data.
    """

    file = "scores.jsonl"

    def __init__(self, heldout: Dataset, trackers: Trackers | None = None, say: Say = lambda text: None) -> None:
        super().__init__(trackers)
        self.heldout, self.say = heldout, say

    def start(self, trainer: Trainer, run: Path) -> None:
        """Open the file."""
        super().start(trainer, run)
        self.scored = 0

    def step(self, trainer: Trainer, step: Step, seconds: float) -> None:
        """Measure when it is time, unless a snapshot follows."""
        if self.needs_model(trainer, step):
            self.measure(trainer, seconds, None)

    def needs_model(self, trainer: Trainer, step: Step) -> bool:
        """When it is time, unless a snapshot follows."""
        every = trainer.config.score_every
        due = bool(every) and step.images - self.scored >= (every or 0)
        return due and trainer.step < trainer.config.steps

    def snapshot(self, trainer: Trainer, folder: Path, seconds: float) -> None:
        """Measure the snapshot."""
        if trainer.config.score_every != 0:
            self.measure(trainer, seconds, folder.name)

    def state(self) -> State:
        """When it was measured last."""
        return State({}, {"scored": self.scored})

    def restore(self, state: State) -> None:
        """Remember it."""
        self.scored = state.facts["scored"]

    def measure(self, trainer: Trainer, seconds: float, snapshot: str | None) -> None:
        """Write a line, and say it in words."""
        self.scored = trainer.images_seen
        sigma, held = losses(trainer, self.heldout)
        _, trained = losses(trainer, trainer.dataset)
        numbers: dict[str, float | None] = {
            "heldout": float(held.mean()),
            "heldout_error": stratified_error(held),
            "training": float(trained.mean()),
            "gap": float((held - trained).mean()),
            "gap_error": stratified_error(held - trained),
        }
        by_sigma = {
            "sigma": _means(sigma.log()).exp().tolist(),
            "heldout_by_sigma": _means(held).tolist(),
            "training_by_sigma": _means(trained).tolist(),
        }
        numbers |= self.scores(trainer)
        line = {"images": self.scored, "seconds": round(seconds, 2), "snapshot": snapshot}
        self.write(line | numbers | by_sigma, {f"scores/{name}": value for name, value in numbers.items()})
        self.say(f"{self.scored:,} images: {in_words(numbers)}")

    def scores(self, trainer: Trainer) -> dict[str, float | None]:
        """What `scores` of the configuration asks for, by name; None where it cannot be measured."""
        config, data = trainer.config, self.heldout
        if not config.scores:
            return {}
        from ...analysis import score_samples  # the measurements, which training does not need

        model, n = trainer.ema.module, config.score_num
        asked: dict[str, Any] = asked_by_data(trainer.model, data, range(n))
        drawn = sample(model, SAMPLER, seeds=range(n), batch_size=config.batch, **asked)
        if not bool(drawn.x.isfinite().all()):
            return dict.fromkeys(config.scores)
        found = score_samples(drawn.x.cpu(), data, trainer.dataset, labels=drawn.labels, metrics=config.scores)
        values = {score.metric: score.value for score in found}
        real = {f"{score.metric}_real": score.real for score in found}
        return dict.fromkeys(config.scores) | values | real


def losses(trainer: Trainer, data: Dataset) -> tuple[Tensor, Tensor]:
    """Levels (512,), rising, and lambda ||D - y||^2 / d of the first average at each, float64.

    Sample k is sample k of the data, from the first again at their end, at the level that its place in a fixed
    permutation gives it; level and noise depend on (seed, k) alone.
    """
    config, model, objective = trainer.config, trainer.ema.module, trainer.design.objective
    order = torch.from_numpy(keyed(config.seed, Stream.HELDOUT, 0).permutation(LOOKS))
    sigma = objective.noise.quantile((order + 0.5) / LOOKS)
    found = []
    with torch.no_grad(), evaluation_mode(model):  # type: ignore[arg-type]
        for rows in torch.arange(LOOKS).split(config.batch):
            y, labels = data.batch(rows % len(data))
            conditions = image_condition(trainer.model, data, rows % len(data), y)
            if trainer.model.label_dim and labels is not None:
                conditions["labels"] = labels
            n = keyed_normal(config.seed, Stream.HELDOUT, 1, rows.tolist(), y.shape[1:])
            y, n = y.to(config.device), n.to(config.device)
            conditions = {name: value.to(config.device) for name, value in conditions.items()}
            part = loss_at(model, y, sigma[rows], n, objective.weighting, **conditions)  # type: ignore[arg-type]
            found.append(part.double().cpu() / math.prod(data.shape))
    rising = sigma.argsort()
    return sigma[rising], torch.cat(found)[rising]


def stratified_error(values: Tensor) -> float:
    """The standard error of the mean of values (n,), n even, one a stratum, in order: from neighbours' differences."""
    return float(((values[::2] - values[1::2]).square().mean() / 2 / len(values)).sqrt())


def best(run: Path) -> dict[str, Any] | None:
    """The line of scores.jsonl of the snapshot with the lowest held-out loss, the first of equals; None without any."""
    file = run / HeldOut.file
    if not file.is_file():
        return None
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return min((line for line in lines if line["snapshot"]), key=lambda line: line["heldout"], default=None)


def in_words(numbers: dict[str, float | None]) -> str:
    """The numbers of a line as a text for people."""
    known = {name: value for name, value in numbers.items() if value is not None}
    text = f"held-out loss {known['heldout']:.4g} ± {known['heldout_error']:.1g}"
    text += f", gap to training data {known['gap']:.2g} ± {known['gap_error']:.1g}"
    for name in [n for n in numbers if f"{n}_real" in numbers]:
        if name in known:
            real = f" (real data {known[f'{name}_real']:.4g})" if f"{name}_real" in known else ""
            text += f"; {name} {known[name]:.4g}{real}"
    return text


def _means(values: Tensor) -> Tensor:
    """The means of `BINS` parts of equal size."""
    return values.reshape(BINS, -1).mean(1)
