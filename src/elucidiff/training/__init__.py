"""Training: the loop, its configuration, the average of weights."""

from .config import TrainConfig
from .ema import EMA, ema_beta
from .loop import Trainer, TrainingError, train

__all__ = ["EMA", "TrainConfig", "Trainer", "TrainingError", "ema_beta", "train"]
