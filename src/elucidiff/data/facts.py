"""What is in a data set, in numbers: range, moments of each channel, classes, duplicates, the first samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from .dataset import Dataset

SHOWN = 5  # groups of duplicates, and samples of a group
FIRST = 8  # samples that are listed
MAX_CHANNELS = 16  # whose mean and deviation are listed


def facts(dataset: Dataset) -> dict[str, Any]:
    """The facts of a data set as JSON data, all in the range the network sees (images: [-1, 1]).

    Of shards, range and moments are those of `measured()`, a part of at most 2,048 samples; `measured` says how many.
    """
    part = dataset.measured()
    y = part.values
    bounds = [float(y.min()), float(y.max())]
    mean, sigma_data = dataset.moments()
    return {
        "samples": len(dataset),
        "shape": list(dataset.shape),
        "kind": "images of 256 levels" if dataset.is_image else "float arrays",
        "measured": len(part),
        "range": [_rounded(v / 127.5 - 1 if dataset.is_image else v) for v in bounds],
        "levels": [int(v) for v in bounds] if dataset.is_image else None,
        "mean": _rounded(mean),
        "sigma_data": _rounded(sigma_data),
        "channels": channel_moments(part) if dataset.shape[0] <= MAX_CHANNELS else None,
        "classes": None if _has_vectors(dataset) else dataset.label_dim or None,
        "label vectors of": dataset.label_dim if _has_vectors(dataset) else None,
        "class names": list(dataset.classes) if dataset.classes else None,
        "samples a class": _counts(dataset),
        "duplicates": duplicates(dataset),
        "first": [first_of(part if len(part) == len(dataset) else dataset, i) for i in range(min(FIRST, len(dataset)))],
        "fingerprint": dataset.fingerprint(),
    }


def channel_moments(dataset: Dataset) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel, the second axis, over samples and places."""
    moments = [Dataset(dataset.values[:, c : c + 1]).moments() for c in range(dataset.shape[0])]
    return {"mean": [_rounded(mean) for mean, _ in moments], "std": [_rounded(std) for _, std in moments]}


def _has_vectors(dataset: Dataset) -> bool:
    return dataset.labels is not None and dataset.labels.ndim == 2


def _counts(dataset: Dataset) -> list[int] | None:
    if dataset.labels is None or _has_vectors(dataset):
        return None
    return np.bincount(dataset.labels, minlength=dataset.label_dim).tolist()


def duplicates(dataset: Dataset) -> dict[str, Any]:
    """Samples that occur more than once: how many could be left out, in how many groups, and a few of the groups.

    An example is a list of names, or of indices where the samples have none. `conflicts` counts the groups whose
    samples have several labels.
    """
    groups = dataset.duplicates()
    labels = dataset.labels
    conflicts = 0 if labels is None else sum(len(np.unique(labels[group], axis=0)) > 1 for group in groups)
    return {
        "count": sum(len(group) - 1 for group in groups),
        "groups": len(groups),
        "conflicts": conflicts,
        "examples": [[_name(dataset, i) for i in group[:SHOWN]] for group in groups[:SHOWN]],
    }


def first_of(dataset: Dataset, i: int) -> dict[str, Any]:
    """A sample: its name or index, its label, its class, the range of its values as they are stored."""
    values = dataset.subset([i]).values
    label = None if dataset.labels is None else dataset.labels[i].tolist()
    name = dataset.classes[label] if dataset.classes is not None and isinstance(label, int) else None
    number = int if dataset.is_image else _rounded
    return {
        "sample": _name(dataset, i),
        "label": label,
        "class": name,
        "range": [number(values.min()), number(values.max())],
        "mean": _rounded(float(values.mean())),
    }


def _name(dataset: Dataset, i: int) -> str | int:
    return i if dataset.names is None else dataset.names[i]


def _rounded(value: float) -> float:
    return float(f"{float(value):.6g}")
