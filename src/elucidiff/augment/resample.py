"""One resampling of images, signals or volumes by a linear map of positions, through a wavelet filter.

    reflect padding -> 2x up with g -> bilinear lookup at q = M p -> 2x down with g

g is the sym6 scaling filter over its sum. Up and down are transposes of each other and g is orthogonal to its even
shifts, so that the identity map returns the input exactly. Both act along one axis, as small matrices into which the
reflection is folded: a matrix product stays in full precision where convolutions on GPUs default to TF32.
"""

from __future__ import annotations

import functools
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ..tensors import widest_dtype
from .pixels import reflected

# Daubechies' least asymmetric filter with six vanishing moments; the sum of squares is 1, the sum sqrt 2.
SYM6 = (
    0.015404109327, 0.003490712084, -0.117990111149, -0.048311742586, 0.491055941928, 0.787641141029,
    0.337929421728, -0.072637522786, -0.021060292512, 0.044724901771, 0.001767711864, -0.007800708325,
)  # fmt: skip
CENTRE = 5
AFTER = len(SYM6) - 1 - CENTRE
ELEMENTS = 1 << 26  # of the fine image at a time; a quarter GB in float32


def warp(x: Tensor, M: Tensor) -> Tensor:
    """Samples x (B, C, *size) of one to three axes, with the value at position p taken from M p.

    M is (B, d + 1, d + 1) float64, acting on (x, y, z, 1) in pixels from the centre, x along the last axis.
    Beyond the input lie its reflections, once a side, and beyond those 0 (sides of up to 3 pixels:
    reflected to 6). In the dtype and on the device of x.
    """
    size = tuple(x.shape[2:])
    low, high = _needed(M, size)
    work = x.to(torch.promote_types(x.dtype, torch.float32))
    at_once = max(1, ELEMENTS // (x.shape[1] * _volume(high - low + 1)))
    parts = zip(work.split(at_once), M.split(at_once), strict=True)
    return torch.cat([_warped(part, m, low, high) for part, m in parts]).to(x.dtype)


def _warped(x: Tensor, M: Tensor, low: Tensor, high: Tensor) -> Tensor:
    size, d = x.shape[2:], x.ndim - 2
    for k in range(d):  # k counts axes from the last, as x, y, z
        x = _along(x, -1 - k, _up(size[-1 - k], int(low[k]), int(high[k])))
    where = _lookup(M, size, low, high, x.device).to(x.dtype)
    if d == 1:  # grid_sample knows two and three axes
        x, where = x[:, :, None], torch.stack([where[..., 0], torch.zeros_like(where[..., 0])], -1)[:, None]
    x = grid_sample(x, where, mode="bilinear", padding_mode="zeros", align_corners=True)
    x = x[:, :, 0] if d == 1 else x
    for k in range(d):
        x = _along(x, -1 - k, _down(size[-1 - k]))
    return x


def _lookup(M: Tensor, size: tuple[int, ...], low: Tensor, high: Tensor, device: torch.device) -> Tensor:
    """Where each sample of the fine output looks, (B, *fine, d), in the units of grid_sample: -1 and 1 at the ends."""
    d, dtype = len(size), widest_dtype(device)
    axes = [torch.arange(-CENTRE, 2 * n - 1 + AFTER, dtype=dtype, device=device) / 2 - (n - 1) / 2 for n in size]
    p = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)  # (*fine, d), x first
    m = M.to(device, dtype)
    p_flat = p.reshape(-1, d)
    q = p_flat @ m[:, :d, :d].mT + m[:, None, :d, d]
    fine = 2 * q + torch.tensor([n - 1 for n in size[::-1]], dtype=dtype, device=device) - low.to(device, dtype)
    return (fine * (2 / (high - low).to(device, dtype)) - 1).reshape(len(M), *p.shape)


def _needed(M: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """First and last fine sample that any lookup of the batch touches, (d,) each, x first; two or more an axis.

    The image of a box is spanned by those of its corners. Fine sample j is at coarse position j / 2.
    """
    n = torch.tensor(size[::-1], dtype=torch.float64)
    ends = [((-CENTRE) / 2 - (k - 1) / 2, (2 * k - 2 + AFTER) / 2 - (k - 1) / 2) for k in size[::-1]]
    corners = torch.tensor([[*corner, 1.0] for corner in product(*ends)], dtype=torch.float64)
    fine = 2 * (corners @ M[:, :-1].to("cpu", torch.float64).mT) + (n - 1)
    margin = torch.tensor([_margin(k) for k in size[::-1]])
    first, last = -2 * margin, 2 * (n - 1 + margin) + 1  # the image, and its reflection on both sides
    low = torch.minimum(torch.maximum(fine.amin((0, 1)).floor(), first), last - 1)
    high = torch.maximum(torch.minimum(fine.amax((0, 1)).floor() + 1, last), low + 1)
    return low.long(), high.long()


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """One axis of x multiplied by a matrix (new, old)."""
    return (x.movedim(axis, -1) @ matrix.to(x.device, x.dtype).mT).movedim(-1, axis)


def _margin(n: int) -> int:
    """Reflected pixels a side: one reflection, or as many as the filter needs where a side has three pixels or less."""
    return n - 1 if n > 3 else len(SYM6) // 2


@functools.lru_cache(maxsize=512)
def _up(n: int, low: int, high: int) -> Tensor:
    """hi[j] = 2 sum_k g[k] u[j + 5 - k] for j = low .. high, u[2 i] the reflected input and 0 between, (.., n)."""
    j = torch.arange(low, high + 1)[:, None]
    i = torch.arange(-_margin(n), n + _margin(n))[None]
    k = j + CENTRE - 2 * i
    g = _filter()
    taps = torch.where((k >= 0) & (k < len(g)), 2 * g[k.clamp(0, len(g) - 1)], 0.0)
    return torch.zeros(len(j), n, dtype=torch.float64).index_add_(1, reflected(i[0], n), taps)


@functools.lru_cache(maxsize=64)
def _down(n: int) -> Tensor:
    """out[i] = sum_k g[k] hi[2 i - 5 + k], the first fine sample being number -5, (n, 2 n + 10)."""
    k = torch.arange(2 * n - 1 + CENTRE + AFTER)[None] - 2 * torch.arange(n)[:, None]
    g = _filter()
    return torch.where((k >= 0) & (k < len(g)), g[k.clamp(0, len(g) - 1)], 0.0)


def _filter() -> Tensor:
    h = torch.tensor(SYM6, dtype=torch.float64)
    return h / h.sum()


def _volume(sizes: Tensor) -> int:
    return int(sizes.prod())
