"""Recipes: configurations of training by name. Those of the papers, and small ones for a laptop.

A recipe says how to train; data and run directory are the user's:

    config = ed.recipes.cifar10().replace(data="cifar10.zip", out="runs/cifar10")
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .augment import Augment
from .design import EDM
from .errors import unknown
from .networks import DDPMPP, MLP, preset
from .objective import Learned, LogNormal
from .training import Power, TrainConfig

KIMG = 1_000
MIMG = 1_000_000


def cifar10() -> TrainConfig:
    """CIFAR-10, 32 x 32 (EDM paper, Table 7): 200 million images, batch 512; conditional where there are labels."""
    return TrainConfig(
        network=preset("ddpmpp-cifar10"),
        images=200 * MIMG,
        batch=512,
        lr=1e-3,
        lr_ramp=10 * MIMG,
        ema_halflife=500.0 * KIMG,
        augment=Augment(p=0.12),
        snapshots=80,
    )


def ffhq64() -> TrainConfig:
    """FFHQ at 64 x 64 (EDM paper, Table 7): 200 million images, batch 256, unconditional."""
    return cifar10().replace(
        network=preset("ddpmpp-64"), batch=256, lr=2e-4, augment=Augment(p=0.15), conditional=False
    )


def afhqv2() -> TrainConfig:
    """AFHQv2 at 64 x 64 (EDM paper, Table 7): as FFHQ, with dropout 0.25."""
    return ffhq64().replace(network=preset("ddpmpp-64", dropout=0.25))


def imagenet64() -> TrainConfig:
    """ImageNet at 64 x 64 (EDM paper, Table 7): ADM, 2,500 million images, batch 4096, float16."""
    return TrainConfig(
        network=preset("adm-imagenet64"),
        images=2_500 * MIMG,
        batch=4096,
        lr=1e-4,
        lr_ramp=10 * MIMG,
        ema_halflife=50 * MIMG,
        precision="float16",
        snapshots=100,
    )


def edm2(size: str = "xs") -> TrainConfig:
    """ImageNet latents 64 x 64 x 4 with EDM2's networks xs, s, m, l, xl, xxl (EDM2 paper, Table 6).

    Learned uncertainty, P_mean -0.4, P_std 1.0, inverse square root decay after 70,000 batches, two power-function
    averages. 2,147 million images are the length of the small sizes; the large ones were stopped earlier. The paper
    scales its latents to sigma_data = 0.5; here it is measured.
    """
    if size not in _EDM2_LR:
        raise ValueError(unknown("size", size, _EDM2_LR))
    objective = EDM.objective.replace(noise=LogNormal(P_mean=-0.4, P_std=1.0), weighting=Learned())
    return TrainConfig(
        network=preset(f"edm2-{size}"),
        design=EDM.replace(objective=objective),
        images=2_147 * MIMG,
        batch=2048,
        lr=_EDM2_LR[size],
        lr_ramp=10 * MIMG,
        lr_decay=70_000 * 2048,
        beta2=0.99,
        ema=(Power(),),
        precision="float16",
        snapshots=256,
    )


def digits() -> TrainConfig:
    """The built-in 8 x 8 digits on one core: what `elucidiff demo` trains, in two and a half minutes."""
    return TrainConfig(images=200 * KIMG)


def mnist() -> TrainConfig:
    """MNIST, 28 x 28 x 1, in 20 minutes on two cores: 2 x 2 pixels are folded into channels, a U-Net at 14 and 7.

    Noise is higher than the paper's: which digit it becomes is decided at sigma above 1, where P_mean = -1.2 trains
    little. The batch is small, since steps are what twenty minutes are short of.
    """
    objective = EDM.objective.replace(noise=LogNormal(P_mean=0.0))
    return TrainConfig(
        network=DDPMPP(channels=32, multipliers=(1, 2), blocks=1, attention=(7,), patch=2),
        design=EDM.replace(objective=objective),
        images=560 * KIMG,
        batch=32,
        optimizer="muon",
        lr=2e-3,
        lr_ramp=10 * KIMG,
        lr_decay=100 * KIMG,
        ema_halflife=60.0 * KIMG,
        ema_ramp=0.1,
        stratified=True,
        channels_last=True,
    )


def points() -> TrainConfig:
    """Points and short vectors: an MLP, about two minutes on one core."""
    return TrainConfig(network=MLP(width=256, depth=4), images=1 * MIMG, batch=512, lr=2e-3, ema_halflife=50.0 * KIMG)


def signals() -> TrainConfig:
    """Signals (C, L) in one dimension: the U-Net of DDPM++ along time, for lengths that are multiples of 4."""
    return TrainConfig(
        network=DDPMPP(channels=32, multipliers=(1, 2, 2), blocks=1, attention=()), images=100 * KIMG, batch=64
    )


_EDM2_LR: Mapping[str, float] = {"xs": 0.0120, "s": 0.0100, "m": 0.0090, "l": 0.0080, "xl": 0.0070, "xxl": 0.0065}

RECIPES: Mapping[str, Callable[[], TrainConfig]] = MappingProxyType(
    {
        "cifar10": cifar10,
        "ffhq64": ffhq64,
        "afhqv2": afhqv2,
        "imagenet64": imagenet64,
        **{f"edm2-{size}": functools.partial(edm2, size) for size in _EDM2_LR},
        "digits": digits,
        "mnist": mnist,
        "points": points,
        "signals": signals,
    }
)


def recipe(name: str, **overrides: Any) -> TrainConfig:
    """A recipe by name; fields can be overridden. Raises ValueError naming all of them."""
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, RECIPES))
    return RECIPES[name]().replace(**overrides)
