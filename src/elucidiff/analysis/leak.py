"""Whether augmentation leaks: do samples without augment labels look like the data, or like the augmented data?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..augment import Augment
from ..component import require
from ..data import Dataset
from ..denoiser import Denoiser
from ..sampler import Sampler, sample
from ..seeds import Stream, keyed

RESAMPLED = 200  # draws of the bootstrap


@dataclass(frozen=True)
class Leak:
    """How far samples are from data and from augmented data, in moments of single samples (`moments`).

    samples_data, samples_augmented, data_augmented: squared energy distances, unbiased, 0 between equal distributions.
    p_data: how likely samples and data from one distribution are to be so far apart; p_augmented: the same of the
    augmented data. fraction, error: the part of the way from data to augmented data that the samples have gone, 0
    when nothing leaks, 1 when all does, and its standard error by bootstrap; None where data and augmented data
    look the same. n: samples, and of either kind of data.
    """

    samples_data: float
    samples_augmented: float
    data_augmented: float
    p_data: float
    p_augmented: float
    fraction: float | None
    error: float | None
    n: int

    @property
    def leaks(self) -> bool | None:
        """Whether the fraction is above 0 by three standard errors; None where these are so wide that nothing shows."""
        if self.fraction is None or self.error is None or self.error > 1 / 6:
            return None
        return self.fraction > 3 * self.error

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON data."""
        return dict(self.__dict__) | {"leaks": self.leaks}


def leak(
    denoiser: Denoiser,
    data: Dataset,
    sampler: Sampler,
    augment: Augment | None = None,
    *,
    num: int = 500,
    seed: int = 0,
    permutations: int = 999,
    batch_size: int = 64,
    progress: bool = False,
) -> Leak:
    """Draw samples from a model without augment labels and compare them with its data, plain and augmented.

    augment: None takes the one that the model was trained with. The samples have the labels of the plain data; these
    and those to be augmented are two disjoint random parts of `data` (num each, or half of the data). Raises
    ValueError where the model records no augmentation or the data are of another shape.
    """
    pipeline = augment or trained_with(denoiser)
    if pipeline is None:
        raise ValueError("leak: this model was trained without augmentation; say which one to look for")
    require(denoiser.shape in (None, data.shape), f"data have shape {data.shape}, the model {denoiser.shape}")
    num = min(num, len(data) // 2)
    require(num >= 4, f"leak: got {len(data)} samples of data; at least 8 are needed")
    order = keyed(seed, Stream.SPLIT, 1).permutation(len(data))
    y, labels = data.batch(order[:num])
    result = sample(
        denoiser,
        sampler,
        seeds=range(seed, seed + num),
        shape=data.shape,
        labels=labels if denoiser.label_dim else None,
        batch_size=min(batch_size, num),
        progress=progress,
    )
    augmented = transformed(data.batch(order[num : 2 * num])[0], pipeline, seed)
    return compared(result.x.cpu(), y, augmented, seed=seed, permutations=permutations)


def trained_with(denoiser: Denoiser) -> Augment | None:
    """The augmentation that a model directory says it was trained with."""
    stored = getattr(denoiser, "info", {}).get("training", {}).get("config", {}).get("augment")
    return None if stored is None else Augment.from_dict(stored)


def transformed(y: Tensor, augment: Augment, seed: int = 0) -> Tensor:
    """Data augmented as in training, with a chance of its own for each sample."""
    return augment(y, parameters=augment.draw(seed, 0, range(len(y))))[0]


def compared(samples: Tensor, data: Tensor, augmented: Tensor, *, seed: int = 0, permutations: int = 999) -> Leak:
    """The same for samples, data and augmented data (n, C, *size) at hand.

    Energy distances between moments, each over its standard deviation in the data (Szekely and Rizzo 2013). A squared
    energy distance is one of a Hilbert space, so the fraction is a projection on the line from data to augmented data:
    (d(S, D) + d(A, D) - d(S, A)) / 2 d(A, D), which does not change with what else is different in the samples.
    Raises ValueError for different shapes or fewer than 4 of each.
    """
    shapes = [tuple(x.shape[1:]) for x in (samples, data, augmented)]
    require(shapes[0] == shapes[1] == shapes[2], f"samples, data and augmented data: got shapes {shapes}")
    require(min(len(samples), len(data), len(augmented)) >= 4, "leak: at least 4 samples of each are needed")
    bounds = float(data.min()), float(data.max())
    groups = [moments(x, *bounds) for x in (samples, data, augmented)]
    std = groups[1].std(0)
    scale = torch.where(std > 0, std, 1.0)  # an axis of one pixel has no spread
    groups = [g / scale for g in groups]
    far = {(i, j): torch.cdist(groups[i], groups[j]) for i in range(3) for j in range(i, 3)}
    even = [torch.full((len(g),), 1 / len(g), dtype=torch.float64) for g in groups]
    d = _distances(far, even)
    generator = torch.Generator().manual_seed(seed)
    p_data, p_augmented = (_p_value(groups[0], groups[k], permutations, generator) for k in (1, 2))
    fraction, error = _fraction(*d), None
    if fraction is not None:
        redrawn = [_fraction(*_distances(far, _redrawn(even, generator))) for _ in range(RESAMPLED)]
        error = float(torch.tensor([f for f in redrawn if f is not None]).std())
    return Leak(*d, p_data, p_augmented, fraction, error, len(samples))


def moments(x: Tensor, low: float, high: float) -> Tensor:
    """What scaling, turning, moving and flipping change: moments (n, k) float64 of each sample x (n, C, *size).

    The mass at a position is the mean of the channels above `low`, within `high`. Of it, per sample: its logarithm, and
    for the axes the mean position, the logarithm of the variance, the skewness, the correlations; positions are in
    units of half the size. For images that makes 8.
    """
    mass = x.double().clamp(low, high).mean(1) - low
    mass = mass + 1e-3 * (high - low)  # so that an empty sample has moments too
    d = mass.ndim - 1
    total = mass.flatten(1).sum(1)
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1).double() for n in mass.shape[1:]]
    places = torch.stack([p.flatten() for p in torch.meshgrid(*axes, indexing="ij")])  # (d, pixels)
    weights = mass.flatten(1) / total[:, None]
    mean = weights @ places.mT
    away = places[None] - mean[:, :, None]
    spread = torch.einsum("np,nip,njp->nij", weights, away, away)
    std = spread.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()
    skew = torch.einsum("np,nip->ni", weights, away**3) / std**3
    correlation = spread / (std[:, :, None] * std[:, None, :])
    pairs = torch.triu_indices(d, d, 1)
    return torch.cat([total.log()[:, None], mean, std.log(), skew, correlation[:, pairs[0], pairs[1]]], dim=1)


def _distances(far: dict[tuple[int, int], Tensor], weights: Sequence[Tensor]) -> tuple[float, float, float]:
    """Unbiased squared energy distances samples-data, samples-augmented, data-augmented under weights of the rows."""

    def mean(i: int, j: int) -> float:
        value = float(weights[i] @ far[i, j] @ weights[j])
        return value * len(weights[i]) / (len(weights[i]) - 1) if i == j else value

    own = [mean(i, i) for i in range(3)]
    first, second, third = (2 * mean(i, j) - own[i] - own[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    return first, second, third


def _fraction(samples_data: float, samples_augmented: float, data_augmented: float) -> float | None:
    """The foot of the samples on the line from data to augmented data; None where these are the same."""
    if data_augmented <= 0:
        return None
    return (samples_data + data_augmented - samples_augmented) / (2 * data_augmented)


def _redrawn(weights: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Weights of samples drawn with replacement from each group."""
    picks = [torch.multinomial(w, len(w), replacement=True, generator=generator) for w in weights]
    return [torch.bincount(pick, minlength=len(pick)).double() / len(pick) for pick in picks]


def _p_value(x: Tensor, y: Tensor, permutations: int, generator: torch.Generator) -> float:
    """The chance of a distance at least as large when all come from one distribution, by permutation.

    With weights w = 1/n for one group and -1/m for the other the squared distance is -w^T |x_i - x_j| w.
    """
    both = torch.cat([x, y])
    far = torch.cdist(both, both)
    w = torch.cat([torch.full((len(x),), 1 / len(x)), torch.full((len(y),), -1 / len(y))]).double()
    orders = [torch.arange(len(both))] + [torch.randperm(len(both), generator=generator) for _ in range(permutations)]
    W = torch.stack([w[order] for order in orders])
    distances = -((W @ far) * W).sum(1)
    return float((distances >= distances[0] * (1 - 1e-12)).double().mean())
