"""Training: the loop, its configuration, averages of weights while it runs and after it."""

from .config import TrainConfig
from .ema import EMA, Averaging, HalfLife, Power, ema_beta
from .loop import Trainer, TrainingError, train
from .posthoc import reconstruct
from .sweep import Sweep, Width, sweep

__all__ = [
    "EMA",
    "Averaging",
    "HalfLife",
    "Power",
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
