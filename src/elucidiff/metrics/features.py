"""Feature extractors: what the distances are measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..component import Component, require
from ..tensors import widest_dtype
from .digit_classifier import SHAPE as DIGIT_SHAPE
from .digit_classifier import shipped_classifier

BATCH = 500
GRID = 4  # cells a side, of the coarse picture and of the energy maps
LEVELS = 6  # bands at most: 256 pixels and more
FLOOR = 0.02  # under a logarithm: two and a half of 256 levels, so that flat areas do not dominate
IDENTITY_MAX = 2048


class Features(Component):
    """Samples (N, *) in the range the network sees (images in [-1, 1]) -> features (N, d) in float64.

    A subclass gives `extract` for one batch. Computed in float64 (float32 where the device has none),
    so that the size of the batches does not show.
    """

    role = "features"

    def features(self, samples: Tensor) -> Tensor:
        """Features (N, d) of the samples, in batches. Raises ValueError for a shape this cannot read."""
        self.check(tuple(samples.shape[1:]))
        return torch.cat(list(_batched(self.extract, samples)))

    def extract(self, batch: Tensor) -> Tensor:
        """Features of one batch of floating samples."""
        raise NotImplementedError

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless this extractor reads samples of this shape."""
        raise NotImplementedError

    @property
    def fd_name(self) -> str:
        """What the Fréchet distance on these features is called: FID is the name of one extractor's alone."""
        return "Fréchet distance"

    def dim(self, shape: tuple[int, ...]) -> int:
        """The number of features d for samples of this shape."""
        return self.features(torch.zeros(1, *shape)).shape[1]


@torch.no_grad()
def _batched(function: Callable[[Tensor], Tensor], samples: Tensor) -> Iterator[Tensor]:
    for batch in samples.split(BATCH):
        yield function(batch.to(widest_dtype(batch.device)))


class ClassFeatures(Features):
    """Features of a network that also names a class. A subclass gives `classify` and `label_dim` too."""

    def logits(self, samples: Tensor) -> Tensor:
        """Logits (N, K) of the classes; the largest is the answer. Raises ValueError for a shape this cannot read."""
        self.check(tuple(samples.shape[1:]))
        return torch.cat(list(_batched(self.classify, samples)))

    def classify(self, batch: Tensor) -> Tensor:
        """Logits of one batch of floating samples."""
        raise NotImplementedError

    @property
    def label_dim(self) -> int:
        """The number of classes K."""
        raise NotImplementedError


class DigitFeatures(ClassFeatures, kind="digits"):
    """The layer before the logits of the shipped digit classifier (40 features), for grey 8x8 images.

    The classifier was trained on the held-out half of the embedded digits, the one that
    `data.load("digits").split(0.5)` gives; metrics/digits.json holds its accuracy on the other half.
    """

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are (1, 8, 8)."""
        require(shape == DIGIT_SHAPE, f"features 'digits' read {DIGIT_SHAPE} images, got {shape}; use 'pyramid'")

    def extract(self, batch: Tensor) -> Tensor:
        """The 40 features of one batch."""
        return shipped_classifier(str(batch.device), batch.dtype).features(batch)

    def classify(self, batch: Tensor) -> Tensor:
        """Logits (B, 10) of the ten digits."""
        return shipped_classifier(str(batch.device), batch.dtype)(batch)

    @property
    def label_dim(self) -> int:
        """Ten digits."""
        return 10


class Identity(Features, kind="identity"):
    """The numbers themselves, flattened: for points and vectors of at most 2,048 numbers."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError when a sample has more than 2,048 numbers."""
        require(
            math.prod(shape) <= IDENTITY_MAX,
            f"features 'identity': {math.prod(shape):,} numbers a sample; at most {IDENTITY_MAX:,} "
            "(project or subsample them, or use 'pyramid' for images)",
        )

    def extract(self, batch: Tensor) -> Tensor:
        """The flattened batch."""
        return batch.flatten(1)


class Pyramid(Features, kind="pyramid"):
    """Statistics of a Laplacian pyramid (Burt and Adelson 1983), for images (C, H, W) from 8x8 on; no weights.

    - the coarse picture: means over a 4x4 grid, every channel;
    - for each band of the brightness (mean of the channels), finest first, as long as the shorter side
      has 8 pixels: log energy over a 4x4 grid, log energy of the gradient in four directions, sparsity
      (mean |b| / rms b: edges against texture) and skewness (lines darker or lighter than their ground);
    - for more than one channel, log energy of each channel's deviation from the brightness, by band;
    - means of the products of two channels: contrast and colour.

    All entries vary by about 0.1 to 1 over natural images, so none rules the distance.
    """

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are images of at least 8x8 pixels."""
        require(
            len(shape) == 3 and min(shape[1:]) >= 8,
            f"features 'pyramid' read images (C, H, W) from 8x8 on, got {shape}; use 'identity' for vectors",
        )

    def extract(self, batch: Tensor) -> Tensor:
        """The features of one batch: coarse picture, bands, colour."""
        brightness = batch.mean(1, keepdim=True)
        parts = [F.adaptive_avg_pool2d(batch, GRID).flatten(1), _products(batch)]
        parts += [_band_statistics(band) for band in _bands(brightness)]
        if batch.shape[1] > 1:
            parts += [_log_energy(band.square().mean((2, 3))) for band in _bands(batch - brightness)]
        return torch.cat(parts, dim=1)


def _bands(image: Tensor) -> Iterator[Tensor]:
    """The detail that each halving of the resolution loses, finest first."""
    for _ in range(LEVELS):
        height, width = image.shape[2:]
        if min(height, width) < 2 * GRID:
            return
        half = F.adaptive_avg_pool2d(image, (math.ceil(height / 2), math.ceil(width / 2)))
        yield image - F.interpolate(half, size=(height, width), mode="bilinear")
        image = half


def _band_statistics(band: Tensor) -> Tensor:
    energy = F.adaptive_avg_pool2d(band.square(), GRID).flatten(1)
    rms = band.square().mean((1, 2, 3)).sqrt()[:, None] + FLOOR
    gradients = [
        band[..., 1:] - band[..., :-1],
        band[..., 1:, :] - band[..., :-1, :],
        band[..., 1:, 1:] - band[..., :-1, :-1],
        band[..., 1:, :-1] - band[..., :-1, 1:],
    ]
    directed = torch.stack([g.square().mean((1, 2, 3)) for g in gradients], dim=1)
    sparsity = band.abs().mean((1, 2, 3))[:, None] / rms
    skewness = (band**3).mean((1, 2, 3))[:, None] / rms**3
    return torch.cat([_log_energy(energy), _log_energy(directed), sparsity, skewness / 4], dim=1)


def _log_energy(mean_square: Tensor) -> Tensor:
    return 0.5 * (mean_square + FLOOR**2).log()


def _products(batch: Tensor) -> Tensor:
    """Means over the picture of x_i x_j, i <= j."""
    flat = batch.flatten(2)
    products = flat @ flat.mT / flat.shape[2]
    i, j = torch.triu_indices(batch.shape[1], batch.shape[1], device=batch.device)
    return products[:, i, j]


def extractor_for(shape: Sequence[int], source: str = "") -> Features:
    """The extractor for samples of this shape: the digit classifier for source "digits" (the embedded data).

    Otherwise the pyramid for images from 8x8 on, and the numbers themselves for anything else.
    Raises ValueError when those are more than 2,048.
    """
    shape = tuple(shape)
    if source == "digits" and shape == DIGIT_SHAPE:
        return DigitFeatures()
    if len(shape) == 3 and min(shape[1:]) >= 8:
        return Pyramid()
    Identity().check(shape)
    return Identity()
