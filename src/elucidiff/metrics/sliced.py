"""Sliced Wasserstein distances: of vectors, and of the patches of images at several scales."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..component import require
from .distances import centred, check_sets

PATCH = 7  # pixels a side
COARSEST = 16  # pixels a side: the pyramid ends before the shorter side falls below
PER_IMAGE = 128  # patches of an image at a level
DESCRIPTORS = 1 << 16  # patches of a set at a level, at most
AT_A_TIME = 1 << 22  # projected numbers held at a time


class SlicedWasserstein(NamedTuple):
    """A mean over directions of one-dimensional Wasserstein distances, to the power p, and its standard error."""

    value: float
    standard_error: float


class PatchDistance(NamedTuple):
    """The mean over the levels, and the distance at each, by the shorter side of the images there."""

    value: float
    levels: dict[int, float]


def sliced_wasserstein(x: Tensor, y: Tensor, *, p: int = 2, projections: int = 512, seed: int = 0) -> SlicedWasserstein:
    """The sliced Wasserstein distance of samples x (n, d) and y (m, d), to the power p:

        mean over directions u of  W_p^p(u.x, u.y),    W_p^p = int_0^1 |F_x^-1(q) - F_y^-1(q)|^p dq

    exact for each direction, also for n != m. For p = 2 it is a squared distance. Finite samples of one distribution
    are about log(log n)/n apart (p = 2), or 1/sqrt(n) (p = 1): compare with the value of real data at the same n.
    The standard error is the first order in the samples (their Kantorovich potentials, averaged over the directions)
    plus that of the mean over directions; in one dimension there is one direction. Raises ValueError for sets that do
    not fit, p other than 1 and 2, fewer than 2 projections.
    Rabin et al. 2011; Bonneel et al. 2015; del Barrio and Loubes 2019.
    """
    check_sets(x, y, fewest=2)
    require(p in (1, 2), f"p: got {p}; expected 1 or 2")
    require(projections >= 2, f"projections: got {projections}; expected at least 2")
    x, y = centred(x, y)
    values, phi, psi = [], torch.zeros_like(x[:, 0]), torch.zeros_like(y[:, 0])
    for u in _directions(x.shape[1], projections, len(x) + len(y), seed):
        (a, i), (b, j) = _sorted(x, u), _sorted(y, u)
        values.append(_wasserstein(a, b, p))
        phi += torch.zeros_like(a).scatter_(0, i, _potential(a, _matched(b, len(a)), p)).sum(1)
        psi += torch.zeros_like(b).scatter_(0, j, _potential(b, _matched(a, len(b)), p)).sum(1)
    found = torch.cat(values)
    directions = float(found.var()) / len(found) if len(found) > 1 else 0.0
    variance = float((phi / len(found)).var()) / len(x) + float((psi / len(found)).var()) / len(y) + directions
    return SlicedWasserstein(float(found.mean()), variance**0.5)


def patch_distance(
    x: Tensor, y: Tensor, *, projections: int = 512, per_image: int = PER_IMAGE, seed: int = 0
) -> PatchDistance:
    """The sliced Wasserstein-1 distance of the 7x7 patches of images x (n, C, H, W) and y (m, C, H, W).

    At each level of the Laplacian pyramid, from the full resolution (the finest details) down to 16 pixels a side (all
    that is left), `per_image` patches of every image, fewer where there are not as many places or there
    would be more than 65,536 of a set; each channel is standardised over the patches of its own set, so
    that a constant brightness or contrast does not count. The published figures are 1,000 times as large. Raises
    ValueError for what are no images of at least 7x7. Karras et al. 2018 (progressive growing), Section 5.
    """
    require(
        x.ndim == 4 and x.shape[1:] == y.shape[1:] and min(x.shape[2:]) >= PATCH and len(x) > 0 < len(y),
        f"images: got shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (n, C, H, W) from {PATCH}x{PATCH} on",
    )
    require(
        bool(torch.isfinite(x).all() and torch.isfinite(y).all()), "images: some are NaN or infinite; drop these first"
    )
    require(per_image >= 1, f"per_image: got {per_image}; expected at least 1 patch")
    require(projections >= 1, f"projections: got {projections}; expected at least 1")
    levels, generator = {}, torch.Generator().manual_seed(seed)
    for a, b in zip(_pyramid(_wide(x)), _pyramid(_wide(y)), strict=True):
        p, q = (_standardised(_patches(band, per_image, generator)) for band in (a, b))
        found = [
            _wasserstein(_sorted_patches(p, u), _sorted_patches(q, u), 1)
            for u in _directions(p.shape[1], projections, len(p) + len(q), seed)
        ]
        levels[min(a.shape[2:])] = float(torch.cat(found).mean())
    return PatchDistance(sum(levels.values()) / len(levels), levels)


def _directions(d: int, count: int, rows: int, seed: int) -> Iterator[Tensor]:
    """Uniform unit vectors (d, k), `count` of them in all, k so that k rows are not too many. One in one dimension."""
    if d == 1:
        yield torch.ones(1, 1, dtype=torch.float64)
        return
    u = torch.randn(d, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    yield from F.normalize(u, dim=0).split(max(1, AT_A_TIME // rows), dim=1)


def _sorted(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The projections (n, k) on directions u (d, k), each column sorted, and the order.

    A column lies in one piece of memory: sorting takes a fraction of the time.
    """
    values, order = (u.to(x).mT @ x.mT).sort(1)
    return values.mT, order.mT


def _sorted_patches(x: Tensor, u: Tensor) -> Tensor:
    """The same without the order, on the CPU by NumPy, which sorts numbers several times as fast as torch."""
    return torch.from_numpy(np.sort((u.mT @ x.mT).numpy(), axis=1)).mT


def _wasserstein(a: Tensor, b: Tensor, p: int) -> Tensor:
    """W_p^p (k,) of the columns of a (n, k) and b (m, k), which are sorted: both quantile functions are steps."""
    if len(a) == len(b):
        return (a - b).abs().pow(p).mean(0)
    n, m = len(a), len(b)  # in units of 1/(n m) the steps are whole numbers
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    width = torch.diff(ends, prepend=ends.new_zeros(1)).to(a) / (n * m)
    i, j = (ends - 1) // m, (ends - 1) // n
    return width @ (a[i.to(a.device)] - b[j.to(a.device)]).abs().pow(p)


def _matched(b: Tensor, n: int) -> Tensor:
    """The values (n, k) of the quantile function of b at (i - 1/2)/n: where the optimal plan takes n sorted values."""
    place = ((torch.arange(n) + 0.5) / n * len(b)).long().clamp(max=len(b) - 1)
    return b[place.to(b.device)]


def _potential(a: Tensor, target: Tensor, p: int) -> Tensor:
    """The Kantorovich potential at sorted values a (n, k) that move to `target`: the integral of its slope.

    phi'(a) = p |a - T(a)|^(p-1) sign(a - T(a)). W_p^p changes by phi(a)/n, to first order, for one more sample at a.
    """
    moved = a - target
    slope = 2 * moved if p == 2 else moved.sign()
    steps = (slope[1:] + slope[:-1]) / 2 * (a[1:] - a[:-1])
    return F.pad(steps.cumsum(0), (0, 0, 1, 0))


def _wide(images: Tensor) -> Tensor:
    return images.detach().to("cpu", torch.float64)


def _pyramid(image: Tensor) -> Iterator[Tensor]:
    """The Laplacian pyramid (Burt and Adelson 1983), finest first; the last level is the small image itself."""
    while min(image.shape[2:]) // 2 >= COARSEST:
        half = _smoothed(image)[..., ::2, ::2]
        between = torch.zeros_like(image)
        between[..., ::2, ::2] = 4 * half  # a quarter of the pixels carry all of the sum
        yield image - _smoothed(between)
        image = half
    yield image


def _smoothed(image: Tensor) -> Tensor:
    """The binomial filter 1 4 6 4 1 along both sides, mirrored at the border."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=image.dtype) / 16
    kernel = torch.outer(taps, taps).expand(image.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=image.shape[1])


def _patches(images: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
    """Patches (k, C, 49) at places drawn without repetition within each image."""
    n, c, height, width = images.shape
    across = width - PATCH + 1
    places = (height - PATCH + 1) * across
    count = max(1, min(per_image, places, DESCRIPTORS // n))
    chosen = torch.rand(n, places, generator=generator).argsort(1)[:, :count]
    offset = torch.arange(PATCH)
    rows = (chosen // across)[:, :, None, None] + offset[:, None]
    columns = (chosen % across)[:, :, None, None] + offset
    found = images.movedim(1, -1)[torch.arange(n)[:, None, None, None], rows, columns]  # (n, count, 7, 7, C)
    return found.movedim(-1, 2).reshape(n * count, c, PATCH**2)


def _standardised(patches: Tensor) -> Tensor:
    """Each channel with mean 0 and deviation 1 over the set, flattened (k, C 49); a flat channel stays at 0."""
    moved = patches - patches.mean((0, 2), keepdim=True)
    scale = moved.square().mean((0, 2), keepdim=True).sqrt()
    return (moved / torch.where(scale > 0, scale, 1)).flatten(1)
