"""Everything a training run depends on, as one value."""

from __future__ import annotations

import math
from typing import Any

from ..augment import Augment
from ..component import Value, require
from ..conditioning import Conditioning
from ..design import EDM, Design
from ..errors import unknown
from ..networks import Network
from .ema import Averaging, HalfLife, members_of
from .numerics import check_precision

# Fields that came later, with their defaults: a configuration that does not use them is written as before.
OPTIONAL: dict[str, Any] = {
    "ema": (),
    "optimizer": "adam",
    "lr_decay": None,
    "lr_cooldown": None,
    "augment": None,
    "accumulate": 1,
    "clip": None,
    "stratified": False,
    "precision": "float32",
    "channels_last": False,
    "compile": False,
    "init": None,
    "condition": None,
    "grid_every": None,
    "score_every": None,
    "scores": (),
    "score_num": 500,
    "trackers": (),
    "grad_nonfinite": "skip",
    "checkpoint_every": None,
    "workers": None,
    "cache": None,
    "on_bad_data": "raise",
    "oom": "raise",
    "parallel": "replicated",
}
# Fields that change no bit of a model, or only say how long it is trained: a run may go on with others. `parallel`
# changes the order of sums, so their last bits, as the number of processes then does: a run may move to more GPUs.
HARMLESS = (
    "data", "out", "images", "snapshots", "grid_every", "score_every", "scores", "score_num", "trackers",
    "checkpoint_every", "workers", "cache", "on_bad_data", "oom", "parallel",
)  # fmt: skip
CHOICES = {
    "optimizer": ("adam", "muon"),
    "grad_nonfinite": ("skip", "clean"),
    "on_bad_data": ("raise", "skip"),
    "oom": ("raise", "halve"),
    "parallel": ("replicated", "sharded"),
}
TRACKERS = ("wandb", "trackio")  # what can be asked for; `training.watching.trackers` knows how


class TrainConfig(Value):
    """A training run. All lengths are counted in images (samples), whatever the data are.

    data: what `ed.data.load` reads; `heldout` is the fraction kept back from training (0: none).
    network: None chooses one by the shape of the data.
    init: a model whose weights, preconditioning and sigma_data training starts from: fine-tuning.
    design: its preconditioning and objective are trained. sigma_data: None measures it and uses it.
    images: how many to train on, repeats included; `batch` of them a step.
    optimizer: "adam", or "muon", whose steps of matrices are orthogonal (`optimizers.Muon`); beta1, beta2, adam_eps
    belong to Adam. lr: reached after `lr_ramp` images; lr_decay: how it falls, lr_cooldown: over how many images it
    goes to 0 at the end, see `lr_at`. ema_halflife, ema_ramp: see `ema_beta`.
    ema: the averages of weights to keep in the place of that half-life, e.g. (HalfLife(500_000.0), Power()); the first
    is the model of a snapshot, the others lie beside it.
    conditional: use the labels of the data, if any; label_dropout: the chance to train a sample
    without its label, which classifier-free guidance needs.
    augment: non-leaky augmentation, whose labels the network is given; its augment_dim follows, unless set.
    condition: the image that the network is given beside the noisy one, e.g. conditioning.LowRes(4), which is made of
    the sample as augmented; None: no image.
    snapshots: how many models to write, the last at the end.
    accumulate: in how many parts a batch is worked through, for less memory; clip: the norm gradients are scaled to
    when theirs is above it. stratified: spread the noise levels of a batch evenly (`draws.draw`).
    precision: of the network, "float32", "bfloat16" or "float16" with loss scaling; weights, D, loss and averages stay
    float32. channels_last: the memory layout of images; compile: by torch.compile. `benchmarks/training.py` measures
    what they gain.

    grad_nonfinite: "skip" leaves out a step in which something is not finite, "clean" does as the paper's training: NaN
    to 0, infinities to +-1e5 in the gradients. checkpoint_every: images between two checkpoints; None: so often that
    it takes below 1 % of the time; 0: never.

    workers: threads that draw the next batches while the network computes; 0: none. None: none on CPUs, up
    to four for GPUs. They change no bit. cache: where decoded images are kept, see `ed.data.load`.
    on_bad_data: "skip" leaves unreadable images out, and counts them. oom: "halve" doubles `accumulate` where a batch
    does not fit into memory, and goes on with the same step.

    parallel: of several processes, "replicated", where each has all weights and any number gives the same bits, or
    "sharded", where each has a piece of weights, gradients, moments and averages: for a model that does not fit.

    What is watched changes no bit of the model. grid_every: images between two sheets of samples; score_every: between
    two measurements of the loss on held-out data. None: at snapshots; a number: then too; 0: never. scores: what else
    is measured then, such as fd, kd, agreement, on `score_num` samples. trackers: wandb, trackio, beside TensorBoard.
    """

    data: str = "digits"
    out: str = "runs/digits"
    network: Network | None = None
    design: Design = EDM
    sigma_data: float | None = None
    images: int = 300_000
    batch: int = 128
    lr: float = 1e-3
    lr_ramp: int = 10_000
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    ema_halflife: float = 30_000.0
    ema_ramp: float | None = 0.05
    heldout: float = 0.0
    conditional: bool = True
    label_dropout: float = 0.0
    augment: Augment | None = None
    seed: int = 0
    snapshots: int = 4
    device: str = "cpu"
    ema: tuple[Averaging, ...] = ()
    optimizer: str = "adam"
    lr_decay: int | None = None
    lr_cooldown: int | None = None
    accumulate: int = 1
    clip: float | None = None
    stratified: bool = False
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    init: str | None = None
    condition: Conditioning | None = None
    grid_every: int | None = None
    score_every: int | None = None
    scores: tuple[str, ...] = ()
    score_num: int = 500
    trackers: tuple[str, ...] = ()
    grad_nonfinite: str = "skip"
    checkpoint_every: int | None = None
    workers: int | None = None
    cache: str | None = None
    on_bad_data: str = "raise"
    oom: str = "raise"
    parallel: str = "replicated"

    def validate(self) -> None:
        """Raise ValueError where a number is out of its range."""
        for name in ("images", "batch", "snapshots", "accumulate"):
            require(getattr(self, name) >= 1, f"{name}: got {getattr(self, name)}; expected at least 1")
        require(0 < self.lr < math.inf, f"lr: got {self.lr}; expected a number above 0")
        require(self.lr_ramp >= 0, f"lr_ramp: got {self.lr_ramp}; expected at least 0 images")
        require(self.ema_halflife > 0, f"ema_halflife: got {self.ema_halflife}; expected a number of images above 0")
        require(self.lr_decay is None or self.lr_decay >= 1, f"lr_decay: got {self.lr_decay}; expected 1 image or more")
        cooldown = self.lr_cooldown
        require(cooldown is None or cooldown >= 1, f"lr_cooldown: got {cooldown}; expected 1 image or more, or none")
        require(
            self.accumulate <= self.batch,
            f"accumulate: got {self.accumulate} parts of a batch of {self.batch}; expected at most one a sample",
        )
        require(self.clip is None or self.clip > 0, f"clip: got {self.clip}; expected a norm above 0, or none")
        check_precision(self.precision)
        members_of(self.ema)  # raises for two of one name
        require(0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, "beta1, beta2: expected numbers in [0, 1)")
        require(0 <= self.heldout < 1, f"heldout: got {self.heldout}; expected a fraction in [0, 1)")
        require(0 <= self.label_dropout <= 1, f"label_dropout: got {self.label_dropout}; expected a number in [0, 1]")
        require(self.seed >= 0, f"seed: got {self.seed}; expected an integer of at least 0")
        require(self.sigma_data is None or self.sigma_data > 0, f"sigma_data: got {self.sigma_data}; expected above 0")
        for name, wanted in CHOICES.items():
            require(getattr(self, name) in wanted, unknown(name, getattr(self, name), wanted))
        if self.parallel == "sharded":
            require(
                self.optimizer == "adam", "optimizer: muon needs whole matrices, parallel=sharded cuts them; use adam"
            )
            require(not self.compile, "compile: does not work with parallel=sharded; leave one of the two out")
            require(self.oom == "raise", "oom: halve does not work with parallel=sharded; set a higher accumulate")
        require(self.workers is None or self.workers >= 0, f"workers: got {self.workers}; expected threads, 0 or none")
        every = self.checkpoint_every
        require(every is None or every >= 0, f"checkpoint_every: got {every}; expected images, 0 (never) or none")
        self._check_watched()

    def differences(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """The fields that change results and differ, with both values; names below "network" and so on have dots."""
        mine, theirs = (_flat(value.to_dict()) for value in (self, other))
        harmless = set(HARMLESS) - ({"images"} if self.lr_cooldown or other.lr_cooldown else set())
        names = [n for n in {**mine, **theirs} if n.partition(".")[0] not in harmless and mine.get(n) != theirs.get(n)]
        return {name: (mine.get(name), theirs.get(name)) for name in names}

    def _check_watched(self) -> None:
        for name in ("grid_every", "score_every"):
            every = getattr(self, name)
            require(every is None or every >= 0, f"{name}: got {every}; expected images, 0 (never) or none (snapshots)")
        for tracker in self.trackers:
            require(tracker in TRACKERS, unknown("tracker", tracker, TRACKERS))
        if self.scores:
            from ..analysis.scores import ALL_METRICS  # the measurements, which training does not need

            for score in self.scores:
                require(score in ALL_METRICS, unknown("score", score, ALL_METRICS))
            require(self.heldout > 0, "scores: there are no held-out data to score against; set heldout, such as 0.1")
            require(self.score_num >= 4, f"score_num: got {self.score_num}; expected at least 4 samples")

    def to_dict(self) -> dict[str, Any]:
        """The value as JSON data; what is optional and not asked for is left out."""
        unasked = {name for name, value in OPTIONAL.items() if getattr(self, name) == value}
        return {name: value for name, value in super().to_dict().items() if name not in unasked}

    @property
    def averages(self) -> tuple[Averaging, ...]:
        """The averages of weights that are kept, the first being the model of a snapshot."""
        return members_of(self.ema or (HalfLife(self.ema_halflife, self.ema_ramp),))

    def lr_at(self, images: float) -> float:
        """The learning rate of the step that ends at t images: lr min(t/t_ramp, 1) / sqrt(max(t/t_ref, 1)) min(r/c, 1).

        t_ramp is `lr_ramp` and t_ref is `lr_decay`, in images (EDM2 paper); None: no decay (EDM). c is `lr_cooldown`
        and r the images that are left before the step, so that a run of `images` ends at 0; None: no cooldown.
        """
        lr = self.lr * min(images / max(self.lr_ramp, 1), 1)
        if self.lr_decay is not None:
            lr /= math.sqrt(max(images / self.lr_decay, 1))
        if self.lr_cooldown is not None:
            lr *= min(max((self.steps + 1) * self.batch - images, 0) / self.lr_cooldown, 1)
        return lr

    @property
    def steps(self) -> int:
        """The number of optimiser steps."""
        return math.ceil(self.images / self.batch)


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"network.channels": 32, ...} of nested JSON data."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
