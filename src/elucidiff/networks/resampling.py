"""Halving and doubling with a filter, in 1 to 3 dimensions."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..component import require
from .layers import CONVOLUTIONS, Init, draw, per_channel, xavier

TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class Resample(nn.Module):
    """A separable FIR filter f (k taps, k even) and a factor of two.

    With f normalised to sum 1 and padding p = (k - 1) // 2:

        down:  y[i] = sum_a f[a] x[2 i + a - p]           (zero outside the image)
        up:    y[2 i + a - p] += 2 f[a] x[i]              (the transposed convolution, gain 2 per axis)

    for each axis. [1, 1] is the mean of 2 x 2 pixels and the nearest neighbour; [1, 3, 3, 1] is the
    filter of NCSN++ (Zhang 2019, "Making Convolutional Networks Shift-Invariant Again").
    """

    fir: Tensor  # (1, 1, k, ..) in `dims` dimensions, normalised

    def __init__(self, taps: tuple[float, ...] = (1, 1), dims: int = 2) -> None:
        super().__init__()
        check_taps(taps)
        # Two equal taps need no filter: the pooling below is 3 to 10 times faster.
        self.box = len(taps) == 2 and taps[0] == taps[1]
        if not self.box:
            self.register_buffer("fir", _filter(taps, dims), persistent=False)

    def _depthwise(self, x: Tensor) -> Tensor:
        return self.fir.to(x).expand(x.shape[1], *[-1] * (x.ndim - 1))

    @property
    def _padding(self) -> int:
        return (self.fir.shape[-1] - 1) // 2


def check_taps(taps: tuple[float, ...]) -> None:
    """Raise ValueError for a filter that cannot resample by two."""
    require(
        len(taps) >= 2 and len(taps) % 2 == 0 and sum(taps) != 0,
        f"resampling filter: got {taps}; expected an even number of taps whose sum is not 0, e.g. (1, 3, 3, 1)",
    )


def _filter(taps: tuple[float, ...], dims: int) -> Tensor:
    # Always on the CPU and with values: a module made on the meta device and filled by load_state_dict(assign=True),
    # which knows nothing of this buffer, is then complete.
    f = torch.tensor(taps, dtype=torch.get_default_dtype(), device="cpu") / sum(taps)
    return functools.reduce(lambda a, b: a[..., None] * b, [f] * dims)[None, None]


class Downsample(Resample):
    """Filter and halve: (B, C, *size) -> (B, C, *size / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """The smaller image."""
        dims = x.ndim - 2
        if self.box:
            return POOLS[dims](x, 2)
        return CONVOLUTIONS[dims](x, self._depthwise(x), stride=2, padding=self._padding, groups=x.shape[1])


class Upsample(Resample):
    """Double and filter: (B, C, *size) -> (B, C, 2 *size)."""

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        dims = x.ndim - 2
        if self.box:
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        f = 2**dims * self._depthwise(x)
        return TRANSPOSED[dims](x, f, stride=2, padding=self._padding, groups=x.shape[1])


class DownConv(nn.Module):
    """A 3 x 3 convolution and a filter that halves, as one: (B, in, *size) -> (B, out, *size / 2).

    The image is padded once, for both, so that the convolution also sees the filter's margin; the bias
    comes last. Differs at the borders from a convolution followed by `Downsample`. Used by NCSN++.
    """

    def __init__(
        self, in_channels: int, out_channels: int, taps: tuple[float, ...], *, dims: int = 2, init: Init = xavier
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *[3] * dims))
        self.bias = nn.Parameter(torch.empty(out_channels))
        draw(init, self.weight, self.bias, 1.0)
        check_taps(taps)
        self.fir: Tensor
        self.register_buffer("fir", _filter(taps, dims), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The smaller image."""
        convolve, out = CONVOLUTIONS[x.ndim - 2], self.weight.shape[0]
        wide = convolve(x, self.weight, padding=1 + (self.fir.shape[-1] - 1) // 2)
        y = convolve(wide, self.fir.to(x).expand(out, *[-1] * (x.ndim - 1)), stride=2, groups=out)
        return y + per_channel(self.bias[None], y)
