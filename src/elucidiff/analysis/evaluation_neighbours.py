"""Which samples lie nearest to training data, and which look least and most like real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..component import require
from ..data import Dataset
from ..metrics import Features
from ..metrics.distances import blocks, centred, check_sets
from .evaluation import sides_of
from .evaluation_judges import measured
from .evaluation_sources import Source
from .evaluation_work import Work


class Neighbours(NamedTuple):
    """The k nearest of some data to each of n samples: distances (n, k), rising, and rows of the data (n, k)."""

    distance: Tensor
    row: Tensor


class Beside(NamedTuple):
    """Samples x (n, *), what they are called, and their neighbours y (n, k, *) with distances (n, k)."""

    x: Tensor
    names: tuple[str, ...]
    by_features: tuple[Tensor, Tensor]
    by_pixels: tuple[Tensor, Tensor]


class Ranked(NamedTuple):
    """Samples x (n, *) with their realism (n,), and what they are called."""

    x: Tensor
    names: tuple[str, ...]
    realism: Tensor


class Shown(NamedTuple):
    """What the pictures of an evaluation show."""

    nearest: Beside
    best: Ranked
    worst: Ranked
    of: int

    def to_dict(self) -> dict[str, Any]:
        """Names and numbers as JSON data."""
        beside = zip(self.nearest.names, self.nearest.by_features[1], self.nearest.by_pixels[1], strict=True)
        ranked = {
            name: [{"sample": n, "realism": r} for n, r in zip(part.names, part.realism.tolist(), strict=True)]
            for name, part in (("best", self.best), ("worst", self.worst))
        }
        rows = [{"sample": n, "by_features": f.tolist(), "by_pixels": p.tolist()} for n, f, p in beside]
        return {"nearest": rows, **ranked}


def nearest(x: Tensor, y: Tensor, k: int = 1) -> Neighbours:
    """The k nearest rows of y (m, d) to each row of x (n, d), by Euclidean distance. Raises ValueError for k > m."""
    check_sets(x, y)
    require(1 <= k <= len(y), f"k: got {k}; expected 1 to {len(y)} neighbours")
    y, x = centred(y, x)
    found = [d2.topk(k, dim=1, largest=False) for _, d2, _ in blocks(x, y)]
    return Neighbours(torch.cat([f.values for f in found]).sqrt(), torch.cat([f.indices for f in found]))


def realism(samples: Tensor, reference: Tensor, k: int = 3) -> Tensor:
    """How far samples y (n, d) are within the data x (m, d), by their features; 1 at the edge, less outside.

        R(y) = max_x  r_k(x) / |y - x|    over the half of x with the smaller r_k

    r_k(x) is the distance of x to its k-th nearest neighbour among the data. Kynkaanniemi et al. 2019, Eq. 3.
    """
    check_sets(samples, reference, fewest=1)
    require(len(reference) > k, f"k: got {k}; expected less than the {len(reference)} reference samples")
    x, y = centred(reference, samples)
    radius = nearest(x, x, k + 1).distance[:, k]  # the nearest of all is the sample itself
    kept = radius <= radius.median()
    x, radius = x[kept], radius[kept]
    tiny = torch.finfo(x.dtype).tiny
    return torch.cat([(radius / d2.sqrt().clamp_min(tiny)).amax(1) for _, d2, _ in blocks(y, x)])


def shown(
    source: Source,
    work: Work,
    extractor: Features,
    training: Dataset,
    reference: Dataset,
    *,
    pairs: int = 8,
    neighbours: int = 4,
    ranked: int = 32,
) -> Shown:
    """The samples nearest to the training data by features, and the most and least real beside the reference.

    Only those that are shown are read, or drawn again from their seeds. Raises ValueError for samples that are no
    images.
    """
    shape = source.shape
    require(
        len(shape) == 3 and shape[0] in (1, 3), f"pictures: samples of shape {shape} are not images; leave them out"
    )
    (side,) = sides_of(source, work, extractor, len(source))
    known, held = (measured(data.tensor(), extractor)["features"] for data in (training, reference))
    by_features = nearest(side.f, known, min(neighbours, len(known)))
    rows = by_features.distance[:, 0].argsort(stable=True)[:pairs].tolist()
    x = source.read(rows).x.cpu()
    y = training.tensor()
    by_pixels = nearest(x.flatten(1), y.flatten(1), min(neighbours, len(y)))
    beside = Beside(
        x,
        tuple(source.name(row) for row in rows),
        (y[by_features.row[rows]], by_features.distance[rows]),
        (y[by_pixels.row], by_pixels.distance),
    )
    scores = realism(side.f, held)
    order = scores.argsort(descending=True, stable=True).tolist()
    n = min(ranked, len(order))
    return Shown(beside, _ranked(source, order[:n], scores), _ranked(source, order[::-1][:n], scores), len(source))


def _ranked(source: Source, rows: Sequence[int], scores: Tensor) -> Ranked:
    return Ranked(source.read(rows).x.cpu(), tuple(source.name(row) for row in rows), scores[list(rows)])
