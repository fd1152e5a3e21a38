"""Measurements on models and samples: scores against data, the loss at each noise level."""

from .loss_profile import LossProfile, loss_profile
from .scores import Score, reference_and_real, score_samples

__all__ = ["LossProfile", "Score", "loss_profile", "reference_and_real", "score_samples"]
