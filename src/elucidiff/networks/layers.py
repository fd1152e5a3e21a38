"""Layers that all networks are made of, in 1 to 3 dimensions: linear, convolution, group norm, attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

SQRT_HALF = math.sqrt(0.5)  # a sum of two terms of unit variance, times this, has unit variance
NEAR_ZERO = 1e-5  # gain of the last layer of a branch: at the start a block is its skip

Init = Callable[[Tensor, Tensor | None], None]  # draws a weight (out, in, *kernel) and a bias (out,) in place

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def xavier(weight: Tensor, bias: Tensor | None) -> None:
    """DDPM++ and NCSN++: uniform with variance 2 / (fan in + fan out), and zero bias."""
    nn.init.xavier_uniform_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


def kaiming(weight: Tensor, bias: Tensor | None) -> None:
    """ADM: uniform in +-1/sqrt(fan in), which is Kaiming's times sqrt(1/3); the bias alike, as PyTorch does it."""
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


class Linear(nn.Module):
    """A linear layer (*, in) -> (*, out), its weights drawn by `init` and multiplied by a gain."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, gain: float = 1.0, init: Init = xavier
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        draw(init, self.weight, self.bias, gain)

    def forward(self, x: Tensor) -> Tensor:
        """W x + b."""
        return functional.linear(x, self.weight, self.bias)


class Conv(nn.Module):
    """A convolution (B, in, *size) -> (B, out, *size) of k pixels a side, k odd, in 1, 2 or 3 dimensions."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, dims: int = 2, gain: float = 1.0, init: Init = xavier
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *[kernel] * dims))
        self.bias = nn.Parameter(torch.empty(out_channels))
        draw(init, self.weight, self.bias, gain)

    def forward(self, x: Tensor) -> Tensor:
        """The same size, as if zeros surrounded it."""
        w = self.weight
        return CONVOLUTIONS[w.ndim - 2](x, w, self.bias, padding=w.shape[-1] // 2)


def draw(init: Init, weight: Tensor, bias: Tensor | None, gain: float) -> None:
    """Initialise a layer: draw its weight and bias and multiply both by the gain."""
    with torch.no_grad():
        init(weight, bias)
        weight.mul_(gain)
        if bias is not None:
            bias.mul_(gain)


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Group normalisation in min(32, C/4) groups, the published number.

    Where that does not divide C, the greatest common divisor of the two is used, so that any width works.
    """
    return nn.GroupNorm(math.gcd(channels, min(32, max(channels // 4, 1))), channels, eps=eps)


def per_channel(v: Tensor, x: Tensor) -> Tensor:
    """A value per channel (1 or B, C), shaped to meet x (B, C, *size)."""
    return v.reshape(*v.shape, *[1] * (x.ndim - 2))


def heads_of(channels: int, head_channels: int) -> int:
    """How many heads attention has: as many as divide the channels with at least head_channels each, at least one."""
    return max([h for h in range(1, channels // head_channels + 1) if channels % h == 0], default=1)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """From (B, 3 C, *size), ordered head, channel of the head, (q, k, v): q, k, v of (B, heads, pixels, C/heads)."""
    split = qkv.reshape(qkv.shape[0], heads, qkv.shape[1] // (3 * heads), 3, -1)
    # One copy, to (3, B, head, pixel, channel): the fused kernels want channels innermost.
    q, k, v = split.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C/heads)) v, shaped as x (B, C, *size); q, k, v are (B, heads, pixels, C/heads).

    PyTorch's kernels keep the softmax in float32 for half-precision inputs, and in float64 for those. The kernels for
    the CPU have no forward-mode and no second derivatives: torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around
    the call has.
    """
    a = functional.scaled_dot_product_attention(q, k, v)
    return a.transpose(-1, -2).reshape(x.shape)
