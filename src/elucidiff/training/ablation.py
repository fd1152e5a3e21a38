"""Table 2 of the EDM paper on one's own data: configurations A to F, each adding one change to the one before."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..analysis.cells import Bench
from ..analysis.compare import Spread
from ..analysis.scores import usual_metrics
from ..analysis.store import Store
from ..augment import for_shape as augmentation_for
from ..component import require
from ..data import DataLike, Dataset, dataset_of
from ..design import EDM, VE, VP, Design
from ..errors import unknown
from ..identity import fingerprint
from ..metrics import Features, extractor_for
from ..models import load
from ..networks import DDPMPP, NCSNPP, Network, for_shape
from ..progress import Report, silent
from ..sampler import Sampler, sampler_of
from .config import TrainConfig
from .loop import train

CHANGES: Mapping[str, str] = {
    "A": "baseline",
    "B": "hyper-parameters: batch, learning rate, averaging, dropout, clipping",
    "C": "capacity from the lowest to the higher resolutions",
    "D": "preconditioning of EDM",
    "E": "noise distribution and loss weight of EDM",
    "F": "non-leaky augmentation",
}
BASELINES: Mapping[str, Design] = {"vp": VP, "ve": VE}

# Hyper-parameters of A over those of B, as published for CIFAR-10 (EDM paper, appendix F).
LR, BATCH, RAMP, HALFLIFE, DROPOUT = 2e-4 / 1e-3, 128 / 512, 640 / 10_000, 900 / 500, 0.10 / 0.13
CLIP = 1.0
ADAM = {"optimizer": "adam", "beta1": 0.9, "beta2": 0.999, "adam_eps": 1e-8}
LOWEST = 4  # pixels a side that an additional lowest level must keep


def configuration(letter: str, base: TrainConfig, shape: tuple[int, ...], baseline: str = "vp") -> TrainConfig:
    """Configuration A, B, C, D, E or F of the EDM paper's Table 2, made from a recipe for data of a shape (C, *size).

    The recipe is F without its augmentation, that is E; F augments (with the recipe's own, or EDM's six at 12 %). What
    comes before takes a step back each:

        D  the noise distribution and loss weight of the baseline, "vp" or "ve"; noise levels are drawn independently
        C  its preconditioning too
        B  a network with more of its capacity at low resolution (`moved_down`), about as large
        A  learning rate, batch, ramp, half-life (with its own ramp) and dropout in the published ratio of A to B,
           gradients clipped at norm 1, the learning rate constant after its ramp, Adam as published

    The x-flips that the published A to E have are left out: they suit photographs, not digits or letters. With "ve" a
    DDPM++ becomes an NCSN++ of the same sizes throughout, as published. Raises ValueError naming letters and baselines.
    """
    require(letter in CHANGES, unknown("configuration", letter, CHANGES))
    require(baseline in BASELINES, unknown("baseline", baseline, BASELINES))
    old, network = BASELINES[baseline], base.network or for_shape(shape)
    if baseline == "ve" and isinstance(network, DDPMPP) and network.patch == 1:
        network = _as_ncsnpp(network)
    config = base.replace(network=network, augment=None)
    if letter == "F":
        return config.replace(augment=base.augment or augmentation_for(shape))
    if letter in "ABCD":
        config = config.replace(design=config.design.replace(objective=old.objective), stratified=False)
    if letter in "ABC":
        config = config.replace(design=config.design.replace(preconditioning=old.preconditioning))
    if letter in "AB":
        config = config.replace(network=moved_down(network, shape))
    return _with_old_hyperparameters(config) if letter == "A" else config


def _as_ncsnpp(network: DDPMPP) -> Network:
    names = ("channels", "multipliers", "blocks", "attention", "channel_mult_emb", "dropout", "augment_dim")
    return NCSNPP(**{name: getattr(network, name) for name in names})


def _with_old_hyperparameters(config: TrainConfig) -> TrainConfig:
    network = config.network
    if network is not None:
        network = network.replace(dropout=network.dropout * DROPOUT)
    return config.replace(
        network=network,
        lr=config.lr * LR,
        batch=max(round(config.batch * BATCH), 1),
        lr_ramp=round(config.lr_ramp * RAMP),
        lr_decay=None,
        lr_cooldown=None,
        **ADAM,
        ema_halflife=config.ema_halflife * HALFLIFE,
        ema_ramp=None if config.ema_ramp is None else config.ema_ramp * HALFLIFE,  # short runs end within it
        clip=CLIP,
    )


def moved_down(network: Network, shape: tuple[int, ...]) -> Network:
    """The U-Net as the baseline has it: half as wide at the top, one level more below, about as many parameters.

    Multipliers 2, 2, 2 become 1, 2, 2, 2, with the channels that bring the number of parameters nearest. Without room
    for another level (below 4 pixels a side) only the widths change; other networks are left as they are.
    """
    if not isinstance(network, (DDPMPP, NCSNPP)):
        return network
    wanted, levels = _size(network, shape), len(network.multipliers)
    sides = [side // getattr(network, "patch", 1) for side in shape[1:]]
    room = all(side % 2**levels == 0 and side >> levels >= LOWEST for side in sides)
    multipliers = (1, *[2] * (levels if room else levels - 1))
    if multipliers == network.multipliers:
        return network
    return _of_size(network.replace(multipliers=multipliers), shape, wanted)


def _of_size(network: DDPMPP | NCSNPP, shape: tuple[int, ...], wanted: int) -> Network:
    """The same with the channels, a multiple of 4, whose number of parameters is nearest to `wanted`."""
    sizes: dict[int, float] = {}  # channels over 4 -> how many times too large, a logarithm
    low, high = 1, network.channels  # four times the channels are always too many
    while high - low > 1:
        middle = (low + high) // 2
        sizes[middle] = math.log(_size(network.replace(channels=4 * middle), shape) / wanted)
        low, high = (middle, high) if sizes[middle] < 0 else (low, middle)
    return network.replace(channels=4 * min(sizes, key=lambda c: abs(sizes[c])))


def _size(network: Network, shape: tuple[int, ...]) -> int:
    """How many parameters the unconditional network has; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in network.build(shape, 0).parameters())


@dataclass(frozen=True)
class Cell:
    """What one configuration reached: its scores over the seeds of training, and the models."""

    letter: str
    parameters: int
    scores: Mapping[str, Spread]
    runs: tuple[Path, ...]

    @property
    def change(self) -> str:
        """What it adds to the one before."""
        return CHANGES[self.letter]

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON data."""
        scores = {metric: spread.to_dict() for metric, spread in self.scores.items()}
        return {
            "configuration": self.letter,
            "change": self.change,
            "parameters": self.parameters,
            "scores": scores,
            "runs": [path.name for path in self.runs],
        }


@dataclass(frozen=True)
class Ablation:
    """What `ablate` measured. real: the score of real data at the same size; facts: what all cells share."""

    cells: tuple[Cell, ...]
    real: Mapping[str, float | None]
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data."""
        return dict(self.facts) | {"real": dict(self.real), "configurations": [cell.to_dict() for cell in self.cells]}


def ablate(
    data: DataLike,
    base: TrainConfig,
    out: str | Path,
    *,
    configs: Sequence[str] = tuple(CHANGES),
    baseline: str = "vp",
    seeds: Sequence[int] = (0, 1, 2),
    sampler: Sampler | Design = EDM,
    metrics: Sequence[str] | None = None,
    num: int = 1000,
    reference: DataLike | None = None,
    extractor: Features | None = None,
    progress: Report = silent,
    time_limit: float | None = None,
) -> Ablation:
    """Train configurations A to F on the same data, each with several seeds, and score their samples.

    Args:
        data: what `ed.data.dataset_of` takes; `base.heldout` of it is kept back as the reference, unless one is given.
        configs: letters.
        baseline: "vp" or "ve".
        base: the recipe, see `configuration`; its `out` and `seed` are not used.
        out: folder of the runs, named vp-A-0 and so on. A stopped ablation goes on: finished runs are kept, and the one
            that was interrupted is resumed from its checkpoint.
        seeds: of training; the samples of all have the seeds 0 to num - 1.
        sampler: draws the samples of every configuration.
        metrics: of `score_samples`; None: the Frechet distance, and class agreement where it can be told.
        num: how many samples of each model.
        extractor: what the metrics are measured on; chosen by the data when None.
        reference: other data to compare with; then all of `data` is trained on.
        progress: told what is done next.
        time_limit: seconds after which the training that goes on then saves its state and stops.

    Raises:
        ValueError: for configurations, metrics and numbers that cannot be, and without anything to compare with.
        TrainingStopped: after a signal during training, or the time limit.
    """
    started = time.monotonic()
    require(len(set(seeds)) == len(seeds) > 0, f"seeds: got {tuple(seeds)}; expected different ones, at least one")
    require(reference is not None or base.heldout > 0, "heldout: got 0 and no reference; keep a part back, such as 0.5")
    out, chosen = Path(out), sampler_of(sampler)
    data, reference = dataset_of(data), None if reference is None else dataset_of(reference)
    made = {letter: configuration(letter, base, data.shape, baseline) for letter in configs}
    extractor = extractor or extractor_for(data.shape, data.source)
    metrics = usual_metrics(data, extractor) if metrics is None else metrics
    bench = _bench(data, base.heldout, reference, num, metrics, extractor, Store(out / "scores.jsonl"))
    real = bench.real()
    training = bench.held_in if reference is None else data
    total, cells = len(made) * len(seeds), list[Cell]()
    for letter, config in made.items():
        runs, values = list[Path](), []
        for seed in seeds:
            done = len(cells) * len(seeds) + len(runs)
            runs.append(out / f"{baseline}-{letter}-{seed}")
            progress(done, total, f"{letter}, seed {seed}: training")
            left = None if time_limit is None else time_limit - (time.monotonic() - started)
            _trained(config.replace(seed=seed, out=str(runs[-1]), heldout=0.0, grid_every=0), training, left)
            progress(done, total, f"{letter}, seed {seed}: sampling")
            model = load(runs[-1])
            found = bench.measured(fingerprint(model), model, chosen, 0, {"run": runs[-1].name})
            values.append(found["scores"])
        spreads = {metric: Spread(tuple(row[metric] for row in values)) for metric in bench.metrics}
        parameters = sum(p.numel() for p in model.parameters())
        cells.append(Cell(letter, parameters, spreads, tuple(runs)))
    facts = bench.facts() | {"baseline": baseline, "sampler": chosen.to_dict(), "recipe": base.to_dict()}
    return Ablation(tuple(cells), real, facts)


def _bench(
    data: Dataset,
    heldout: float,
    reference: Dataset | None,
    num: int,
    metrics: Sequence[str],
    extractor: Features,
    store: Store,
) -> Bench:
    bench = Bench.of(
        data,
        num=num,
        metrics=metrics,
        heldout=heldout or 0.5,
        batch_size=min(num, 250),
        extractor=extractor,
        store=store,
    )
    if reference is None:
        return bench
    return replace(
        bench,
        reference=reference,
        held_in=data,
        heldout=0.0,
        fingerprint=f"{data.fingerprint()} {reference.fingerprint()}",
    )


def _trained(config: TrainConfig, data: Dataset, time_limit: float | None) -> None:
    """A finished run at config.out, trained now unless it is there; one that was stopped half-way goes on.

    Raises ValueError when a run of another configuration is there.
    """
    run = Path(config.out)
    if (run / "config.json").exists():
        require(  # the folder may have been named in another way, or moved
            TrainConfig.load(run / "config.json").replace(out=config.out) == config,
            f"{run}: a run of another configuration; name another folder, or repeat what was asked for then",
        )
        return
    partial = run.with_name(f"{run.name}.partial")
    train(config.replace(out=str(partial)), data=data, resume=True, time_limit=time_limit)
    config.save(partial / "config.json")
    partial.rename(run)
