"""Scores that need no download: Fréchet and kernel distances on features of shipped, weight-free or own extractors."""

from __future__ import annotations

from .classifier import Classifier, load_classifier, train_classifier
from .features import ClassFeatures, DigitFeatures, Features, Identity, Pyramid, extractor_for
from .frechet import SmallSampleWarning, Statistics, frechet_distance
from .kernel import KernelDistance, kernel_distance

__all__ = [
    "ClassFeatures",
    "Classifier",
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
    "load_classifier",
    "train_classifier",
]
