"""Training: the loop, its configuration, averages of weights while it runs and after it.

What works on finished runs is imported where it is first used: it needs the measurements, which training does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .checkpoint import NoGoodCheckpoint
from .config import TrainConfig
from .ema import EMA, Averaging, HalfLife, Power, ema_beta
from .errors import OutOfMemory, TrainingError
from .interruption import TrainingStopped
from .loop import train
from .trainer import Step, Trainer
from .watching.watch import Watcher

if TYPE_CHECKING:
    from .ablation import Ablation, ablate, configuration
    from .posthoc import reconstruct
    from .widths import Sweep, Width, sweep

__all__ = [
    "EMA",
    "Ablation",
    "Averaging",
    "HalfLife",
    "NoGoodCheckpoint",
    "OutOfMemory",
    "Power",
    "Step",
    "Sweep",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "TrainingStopped",
    "Watcher",
    "Width",
    "ablate",
    "configuration",
    "ema_beta",
    "reconstruct",
    "sweep",
    "train",
]

_HOMES = {
    "ablation": ("Ablation", "ablate", "configuration"),
    "posthoc": ("reconstruct",),
    "widths": ("Sweep", "Width", "sweep"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value
