"""Scores that need no download: Fréchet and kernel distances on features of shipped or weight-free extractors."""

from __future__ import annotations

from .features import DigitFeatures, Features, Identity, Pyramid, extractor_for
from .frechet import SmallSampleWarning, Statistics, frechet_distance
from .kernel import KernelDistance, kernel_distance

__all__ = [
    "DigitFeatures",
    "Features",
    "Identity",
    "KernelDistance",
    "Pyramid",
    "SmallSampleWarning",
    "Statistics",
    "extractor_for",
    "frechet_distance",
    "kernel_distance",
]
