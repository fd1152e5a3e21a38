"""The live state of a training run, and one step of it: Eq. 8, Adam, the averages of weights."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..component import require
from ..conditioning import Conditioning
from ..data import Dataset, check_sigma_data
from ..denoiser import Preconditioned
from ..design import Design
from ..errors import FormatError
from ..models import load
from ..networks import Network, Uncertainty, for_shape, normalize_weights
from ..objective import Learned, loss_at, with_uncertainty
from ..seeds import Stream, torch_seeded
from .checkpoint import State, fill
from .config import TrainConfig
from .draws import Draws, Order
from .ema import EMA, Averaging
from .errors import TrainingError
from .memory import explained, halving, resumed
from .numerics import clean_gradients, laid_out, network_precision, scaler_of
from .optimizers import moments_of, optimizer_of
from .prefetch import Ahead, drawn
from .ranks import ALONE, Ranks
from .weights import Weights, weights_for

TOLERATED = 10  # steps in a row that may change nothing
ORIGIN = ("license", "imported")  # what is known of foreign weights, and stays true of what is made of them


@dataclass(frozen=True, eq=False)
class Step:
    """What a step saw. losses: lambda ||D - y||^2 of its samples (B,), at levels sigma (B,) float64, on the CPU.

    images: seen after it. loss: the mean of what was minimised. grad_norm: of all gradients, before clipping.
    skipped: why the step changed nothing, None as a rule. replaced: samples that others, of unreadable files, gave
    their place to.
    """

    images: int
    loss: float
    sigma: Tensor
    losses: Tensor
    grad_norm: float
    lr: float
    skipped: str | None = None
    replaced: int = 0


class Seen(NamedTuple):
    """What the samples of a batch showed: sigma, what was minimised, lambda ||D - y||^2, how good y was; (B,).

    good: 0 for a y that is not finite, 2 for one in the place of a file that cannot be read, else 1.
    """

    sigma: Tensor
    minimised: Tensor
    plain: Tensor
    good: Tensor


@dataclass
class Trainer:
    """The live state of a run: the model in training, its averages, the optimiser, the step.

    uncertainty: u(c_noise) of a learned weighting, trained beside the model and needed by nothing afterwards.
    skipped: how many steps in a row changed nothing, since something in them was not finite.
    ahead: what draws the next parts meanwhile, if anything. asked: the `accumulate` that it was started with.
    """

    config: TrainConfig
    design: Design
    dataset: Dataset
    model: Preconditioned
    averages: list[tuple[Averaging, EMA]]
    optimizer: torch.optim.Optimizer
    order: Order
    scaler: torch.amp.GradScaler
    weights: Weights
    uncertainty: nn.Module | None = None
    step: int = 0
    skipped: int = 0
    ranks: Ranks = ALONE
    ahead: Ahead | None = None
    asked: int = 1

    @classmethod
    def start(cls, config: TrainConfig, dataset: Dataset, ranks: Ranks = ALONE) -> Trainer:
        """A new run: sigma_data measured, network chosen and initialised from the seed, or both those of `init`.

        ranks: the processes that share each batch, in parts; ValueError unless they can.
        """
        require(
            config.accumulate % ranks.size == 0,
            f"accumulate: got {config.accumulate} parts of a batch for {ranks.size} processes; expected a multiple, "
            f"such as {ranks.size}",
        )
        with torch_seeded(config.seed, Stream.INIT):
            design, model = _initialised(config, dataset) if config.init else _new(config, dataset)
            uncertainty = _uncertainty(design, model.network)
        _check_pairs(config, model.conditioning, dataset)
        model.train().requires_grad_(True)  # a loaded one is frozen
        weights = weights_for(model, uncertainty, config, ranks)
        averages = [(averaging, weights.average()) for averaging in config.averages]
        if config.compile:
            model.network.compile()  # after the averages were made: they run eagerly
        optimizer = optimizer_of(config, weights.parameters)
        scaler = scaler_of(config.precision, config.device)
        order = Order(len(dataset), config.seed)
        state = (averages, optimizer, order, scaler, weights, uncertainty)
        return cls(config, design, dataset, model, *state, ranks=ranks, asked=config.accumulate)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser changes: of sharded weights the pieces that this process has."""
        return self.weights.parameters

    @property
    def ema(self) -> EMA:
        """The first average, the model of a snapshot."""
        return self.averages[0][1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the data; read once, since it takes all of them."""
        return self.dataset.fingerprint()

    @property
    def images_seen(self) -> int:
        """How many images training has used so far, repeats included."""
        return self.step * self.config.batch

    @explained
    def train_step(self) -> Step:
        """One step of the optimiser on one batch.

        Where a loss or a gradient is not finite, nothing is changed and the next step goes on (`Step.skipped`); the
        tenth such step in a row raises TrainingError, and so does an update that makes a weight so. float16 overflows
        now and then, at the start above all; its steps are skipped too, and do not count
        until the scale of the loss is below 1.

        The batch is worked through in `accumulate` parts, whose gradients are summed: memory falls, and the step is the
        same but for rounding, and for the masks of dropout, which each part draws for itself. Several processes share
        the parts; for powers of two the sum has one order (`ranks.TreeSum`), and so has the run its bits, however
        many they are.
        """
        config = self.config
        normalize_weights(self.model.network)  # of magnitude-preserving networks; the forward pass never changes them
        if self.uncertainty is not None:
            normalize_weights(self.uncertainty)
        _, seen = halving(self, self.weights.collect)
        joined = Seen(*(self.ranks.joined(torch.cat(column)) for column in zip(*seen, strict=True)))
        reason, scale = self._not_finite(joined), self.scaler.get_scale()
        norm, reason = (torch.tensor(math.nan), reason) if reason else self._update()
        if lowered := self.scaler.get_scale() < scale:
            reason = f"a gradient overflowed float16; the loss scale is {self.scaler.get_scale():g} now"
        found_so = lowered and self.scaler.get_scale() >= 1  # below, no scale will do
        self._count(None if found_so else reason)
        self.step += 1
        lr, loss = config.lr_at(self.images_seen), joined.minimised.mean().item()
        replaced = int((joined.good == 2).sum()) if config.on_bad_data == "skip" else 0
        return Step(self.images_seen, loss, joined.sigma.cpu(), joined.plain.cpu(), norm.item(), lr, reason, replaced)

    def _gradients(self, part: int, seen: list[Seen]) -> int:
        """Leave the gradients of one of the `accumulate` parts of the batch; what it saw is added to the list."""
        config = self.config
        batch = drawn(self, part)
        with torch_seeded(config.seed, Stream.NETWORK, self.step, part):  # dropout
            loss, plain = self._losses(batch)
            self.scaler.scale(loss.sum() / config.batch).backward()
        good = batch.y.flatten(1).isfinite().all(1).to(torch.uint8) * (1 + batch.replaced.to(torch.uint8))
        seen.append(Seen(*(t.detach().to(config.device) for t in (batch.sigma, loss, plain, good))))
        return part

    def _losses(self, drawn: Draws) -> tuple[Tensor, Tensor]:
        """What is minimised and lambda ||D - y||^2, each (B,); without a learned uncertainty they are one."""
        config = self.config
        conditions = {"labels": drawn.labels} if self.model.label_dim and drawn.labels is not None else {}
        y, n = drawn.y.to(config.device), drawn.n.to(config.device)
        if config.augment is not None:
            y, conditions["augment_labels"] = config.augment(y, parameters=drawn.augment)
        y = laid_out(y, config.channels_last)
        if (conditioning := self.model.conditioning) is not None:
            c = conditioning.of(y) if conditioning.from_data else cast("Tensor", drawn.condition).to(config.device)
            conditions["condition"] = c
        with network_precision(config.precision, config.device):
            plain = loss_at(self.model, y, drawn.sigma, n, self.design.objective.weighting, **conditions)
        if self.uncertainty is None:
            return plain, plain
        u = self.uncertainty((drawn.sigma.log() / 4).to(config.device))
        return with_uncertainty(plain, u, y[0].numel()), plain

    def _update(self) -> tuple[Tensor, str | None]:
        """Clip, step, average; the norm of the gradients, and why nothing was done instead."""
        config, images = self.config, self.images_seen + self.config.batch
        if self.scaler.is_enabled():
            self.weights.share_overflow()
        self.scaler.unscale_(self.optimizer)
        if config.grad_nonfinite == "clean":
            clean_gradients(self.parameters)
        norm = self.weights.norm(config.clip)
        if not norm.isfinite() and not self.scaler.is_enabled():  # the scaler expects overflows, and skips them itself
            return norm, f"the gradient of {self.weights.first_bad([p.grad for p in self.parameters])} is not finite"
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(images)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if (name := self.weights.first_overflown()) is not None:  # before an average has it
            raise TrainingError(f"step {self.step}: {name} is not finite after the update; lower lr")
        for averaging, ema in self.averages:
            ema.update(averaging.beta(config.batch, images))
        return norm, None

    def _not_finite(self, seen: Seen) -> str | None:
        """What is not finite: a sample, a weight or a loss; None as a rule, and where gradients are to be cleaned."""
        loss = seen.minimised
        if self.config.grad_nonfinite == "clean" or torch.isfinite(loss).all():
            return None
        bad = int((~torch.isfinite(loss)).nonzero()[0])
        at = f"the loss is {loss[bad].item()} at sigma = {seen.sigma[bad].item():.4g}"
        if not seen.good[bad]:
            return f"{at}; its sample is not finite"
        name = self.weights.first_bad(self.parameters)
        return f"{at}; lower lr" if name is None else f"{at}; the weight {name} is not finite"

    def _count(self, reason: str | None) -> None:
        self.skipped = self.skipped + 1 if reason else 0
        if self.skipped >= TOLERATED:
            raise TrainingError(f"step {self.step}: {reason} ({TOLERATED} steps in a row changed nothing)")

    def state(self) -> State:
        """Everything that the following steps depend on, beside configuration and data."""
        tensors = {f"model.{name}": t for name, t in self.model.network.state_dict().items()}
        for i, (_, ema) in enumerate(self.averages):
            tensors |= {f"average{i}.{name}": t for name, t in ema.state().items()}
        if self.uncertainty is not None and self.uncertainty not in self.model.network.children():
            tensors |= {f"uncertainty.{name}": t for name, t in self.uncertainty.state_dict().items()}
        moved = {i: self.optimizer.state[p] for i, p in enumerate(self.parameters) if p in self.optimizer.state}
        for i, known in moved.items():  # "adam" whatever the optimiser: so the files have it
            tensors |= {
                f"adam{i}.{n}": self.weights.stored(i, known[n]) for n in moments_of(self.config, self.parameters[i])
            }
        steps = {str(i): float(known["step"]) for i, known in moved.items()}
        facts = {"step": self.step, "skipped": self.skipped, "adam": steps, "scaler": self.scaler.state_dict()}
        facts["accumulate"] = self.config.accumulate
        return State(tensors, facts)

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Take on a state that `state` gave. Raises FormatError where it is that of another model."""
        try:
            for i, steps in state.facts["adam"].items():
                p = self.parameters[int(i)]
                moments = {name: torch.zeros_like(p) for name in moments_of(self.config, p)}
                self.optimizer.state[p] = {"step": torch.tensor(steps), **moments}
            fill(dict(self.state().tensors), state)
        except (RuntimeError, KeyError, IndexError) as error:
            raise FormatError(f"checkpoint: not of this model ({error})") from error
        self.scaler.load_state_dict(state.facts["scaler"])
        self.step, self.skipped = state.facts["step"], state.facts["skipped"]
        self.config = resumed(self.config, state.facts.get("accumulate", 0))

    def info(self, seconds: float, averaging: Averaging | None = None) -> dict[str, Any]:
        """What model.json records about training and data; of the average only where `ema` asked for it."""
        average = {"ema": averaging.to_dict()} if self.config.ema and averaging else {}
        data = self.dataset
        origin = {name: value for name, value in self.model.info.items() if name in ORIGIN}  # of `init`
        return origin | {
            "data": {
                "name": data.name,
                "images": len(data),
                "range": [-1, 1] if data.is_image else None,
                "sigma_data": data.sigma_data(),
                "classes": data.classes,
                "fingerprint": self.fingerprint,
                "heldout": self.config.heldout,
            },
            "training": {
                "images_seen": self.images_seen,
                "seconds": round(seconds, 1),
                "config": self.config.to_dict(),
                **average,
            },
        }


def _new(config: TrainConfig, dataset: Dataset) -> tuple[Design, Preconditioned]:
    sigma_data = config.sigma_data or dataset.sigma_data()
    check_sigma_data(sigma_data, dataset.sigma_data())
    design = config.design.with_sigma_data(sigma_data)
    return design, Preconditioned(
        _network(config, dataset.shape),
        design.preconditioning,
        shape=dataset.shape,
        label_dim=dataset.label_dim if config.conditional else 0,
        vector_labels=config.conditional and _has_vectors(dataset),
        conditioning=config.condition,
    )


def _check_pairs(config: TrainConfig, conditioning: Conditioning | None, dataset: Dataset) -> None:
    """Raise ValueError where the data do not bring the conditions that the model needs, or these could not be kept."""
    if conditioning is None or conditioning.from_data:
        return
    wanted, found = conditioning.shape(dataset.shape), dataset.condition
    require(
        found is not None and found.shape[1:] == wanted,
        f"condition: {conditioning} needs data with conditions (N, {', '.join(map(str, wanted))}), in an npz under "
        f"`condition`; got {'none' if found is None else found.shape}",
    )
    require(
        config.augment is None,
        "augment: would move samples, but not the images that they are paired with; leave one of the two out",
    )


def _has_vectors(dataset: Dataset) -> bool:
    """Whether labels are vectors; those with class names are soft classes, which can be drawn."""
    return dataset.labels is not None and dataset.labels.ndim == 2 and dataset.classes is None


def _initialised(config: TrainConfig, dataset: Dataset) -> tuple[Design, Preconditioned]:
    """The model of `init` as it is, and the design with its preconditioning. Raises ValueError if it does not fit."""
    model = load(str(config.init))
    require(
        isinstance(model, Preconditioned) and model.network_config is not None,
        f"init: {config.init} is no network that can be trained on; expected a model of ours or an imported one",
    )
    model = cast("Preconditioned", model)
    labels = dataset.label_dim if config.conditional else 0
    require(
        model.shape == dataset.shape and model.label_dim in (0, labels),
        f"init: the model has shape {model.shape} and {model.label_dim} classes; "
        f"expected those of the data, {dataset.shape} and {labels}",
    )
    for name in ("network", "sigma_data"):
        require(getattr(config, name) is None, f"{name}: got one, but init={config.init} has its own; leave it out")
    if config.augment is not None:
        own = cast("Network", model.network_config).augment_dim
        require(
            own == config.augment.label_dim,
            f"augment: has {config.augment.label_dim} label entries, the network of {config.init} takes {own}",
        )
    require(
        config.condition in (None, model.conditioning),
        f"condition: got {config.condition}, but the model of {config.init} has {model.conditioning}; leave it out",
    )
    design = config.design.replace(preconditioning=model.preconditioning)
    sigma_data = design.sigma_data
    return design.with_sigma_data(sigma_data) if sigma_data else design, model


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


def _uncertainty(design: Design, network: nn.Module) -> nn.Module | None:
    """The network's own head for u(sigma), or a new one; None unless the weighting is learned."""
    weighting = design.objective.weighting
    if not isinstance(weighting, Learned):
        return None
    own = getattr(network, "uncertainty", None)
    return own if own is not None else Uncertainty(weighting.channels)
