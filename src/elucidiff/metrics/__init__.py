"""Scores that need no download: Fréchet and kernel distances on features of shipped, weight-free or own extractors."""

from __future__ import annotations

from .class_score import ClassScore, class_score
from .classifier import Classifier, load_classifier, train_classifier
from .dinov2 import DINOv2
from .features import ClassFeatures, DigitFeatures, Features, Identity, Pyramid, extractor_for
from .frechet import SmallSampleWarning, Statistics, frechet_distance
from .inception import Inception
from .kernel import KernelDistance, kernel_distance
from .manifold import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from .memorising import Memorisation, memorisation
from .named import Named, named_features
from .reference import Reference, extractor_hash, load_reference, save_reference
from .sliced import PatchDistance, SlicedWasserstein, patch_distance, sliced_wasserstein
from .two_sample import TwoSample, energy_distance, median_distance, mmd

__all__ = [
    "ClassFeatures",
    "ClassScore",
    "Classifier",
    "DINOv2",
    "DensityCoverage",
    "DigitFeatures",
    "Features",
    "Identity",
    "Inception",
    "KernelDistance",
    "Memorisation",
    "Named",
    "PatchDistance",
    "PrecisionRecall",
    "Pyramid",
    "Reference",
    "SlicedWasserstein",
    "SmallSampleWarning",
    "Statistics",
    "TwoSample",
    "class_score",
    "density_coverage",
    "energy_distance",
    "extractor_for",
    "extractor_hash",
    "frechet_distance",
    "kernel_distance",
    "load_classifier",
    "load_reference",
    "median_distance",
    "memorisation",
    "mmd",
    "named_features",
    "patch_distance",
    "precision_recall",
    "save_reference",
    "sliced_wasserstein",
    "train_classifier",
]
