"""What a person looks at: a page in one file, and the pictures on it."""

from __future__ import annotations

from .page import Page
from .pictures import (
    curves_plot,
    levels_plot,
    loss_plot,
    sample_sheet,
    score_plot,
    training_plot,
    trajectory_sheet,
)

__all__ = [
    "Page",
    "curves_plot",
    "levels_plot",
    "loss_plot",
    "sample_sheet",
    "score_plot",
    "training_plot",
    "trajectory_sheet",
]
