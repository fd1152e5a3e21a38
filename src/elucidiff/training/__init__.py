"""Training: the loop, its configuration, averages of weights while it runs and after it.

What works on finished runs is imported where it is first used: it needs the measurements, which training does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import TrainConfig
from .ema import EMA, Averaging, HalfLife, Power, ema_beta
from .loop import train
from .trainer import Step, Trainer, TrainingError

if TYPE_CHECKING:
    from .posthoc import reconstruct
    from .widths import Sweep, Width, sweep

__all__ = [
    "EMA",
    "Averaging",
    "HalfLife",
    "Power",
    "Step",
    "Sweep",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "Width",
    "ema_beta",
    "reconstruct",
    "sweep",
    "train",
]

_HOME_OF = {"reconstruct": "posthoc", "Sweep": "widths", "Width": "widths", "sweep": "widths"}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value
