"""The residual block and the attention of DDPM++, NCSN++ and ADM; what these differ in is a `Style`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from .layers import (
    NEAR_ZERO,
    SQRT_HALF,
    Conv,
    Init,
    Linear,
    attend,
    group_norm,
    heads_of,
    per_channel,
    split_heads,
    xavier,
)
from .resampling import Downsample, Resample, Upsample


@dataclass(frozen=True)
class Style:
    """What the blocks of the families differ in; the defaults are DDPM++'s."""

    dims: int = 2  # of the image: 1, 2 or 3
    taps: tuple[float, ...] = (1, 1)  # of the resampling filter
    eps: float = 1e-6  # of group norms
    k: float = SQRT_HALF  # factor of each residual sum
    scale_shift: bool = False  # the embedding scales and shifts behind the norm, instead of a shift before it
    head_channels: int | None = None  # None: one head
    resample_skips: bool = True  # a block that only resamples has a 1x1 convolution as its skip
    init: Init = xavier
    qkv_gain: float = math.sqrt(0.2)
    last_gain: float = NEAR_ZERO  # of the last layer of a branch

    def down(self) -> Downsample:
        """A new halving of the image."""
        return Downsample(self.taps, self.dims)

    def up(self) -> Upsample:
        """A new doubling of the image."""
        return Upsample(self.taps, self.dims)

    def conv(self, in_channels: int, out_channels: int, kernel: int, gain: float = 1.0) -> Conv:
        """A new convolution."""
        return Conv(in_channels, out_channels, kernel, dims=self.dims, gain=gain, init=self.init)

    def norm(self, channels: int) -> nn.GroupNorm:
        """A new group norm."""
        return group_norm(channels, self.eps)


DDPMPP_STYLE = Style()


class Attention(nn.Module):
    """Self-attention of all pixels, and its residual sum: (B, C, *size) -> (B, C, *size).

        q, k, v = W_qkv groupnorm(x)
        y = ( x + W_proj softmax(q k^T / sqrt(C / heads)) v ) k        k of the style: sqrt(1/2), or 1 for ADM

    The output channels of W_qkv are ordered head first, then channel, then (q, k, v), as in the published
    weights. Source: [SDE] app. H; Dhariwal and Nichol 2021.
    """

    def __init__(self, channels: int, style: Style = DDPMPP_STYLE) -> None:
        super().__init__()
        self.style = style
        self.heads = heads_of(channels, style.head_channels or channels)
        self.norm = style.norm(channels)
        self.qkv = style.conv(channels, 3 * channels, 1, gain=style.qkv_gain)
        self.proj = style.conv(channels, channels, 1, gain=style.last_gain)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of x and what its pixels found in one another."""
        a = attend(*split_heads(self.qkv(self.norm(x)), self.heads), x)
        return (x + self.proj(a)) * self.style.k


class ResidualBlock(nn.Module):
    """The residual block: (B, C_in, *size), emb -> (B, C_out, *size').

        h = conv3x3( resample( silu( groupnorm(x) ) ) )
        h = silu( groupnorm( h + affine(emb) ) )                          DDPM++ and NCSN++
        h = silu( groupnorm(h) (1 + scale) + shift )                      ADM; scale, shift = affine(emb)
        h = conv3x3( dropout(h) )
        y = ( skip( resample(x) ) + h ) k                                 then attention, where asked

    skip is a 1x1 convolution where the channels change or (not ADM) the block resamples, else the identity;
    k is sqrt(1/2), or 1 for ADM. Source: [SDE] app. H, Dhariwal and Nichol 2021, [EDM] app. F.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        dropout: float = 0.0,
        resample: Resample | None = None,
        attention: bool = False,
        style: Style = DDPMPP_STYLE,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.style = style
        self.norm_in = style.norm(in_channels)
        self.resample = resample or nn.Identity()
        self.conv_in = style.conv(in_channels, out_channels, 3)
        self.affine = Linear(emb_channels, out_channels * (2 if style.scale_shift else 1), init=style.init)
        self.norm_out = style.norm(out_channels)
        self.conv_out = style.conv(out_channels, out_channels, 3, gain=style.last_gain)
        keeps = in_channels == out_channels and not (resample and style.resample_skips)
        self.skip = nn.Identity() if keeps else style.conv(in_channels, out_channels, 1)
        self.attention = Attention(out_channels, style) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """The block's output; emb (1, E) serves the whole batch, (B, E) one sample a row."""
        h = self.conv_in(self.resample(functional.silu(self.norm_in(x))))
        v = per_channel(self.affine(emb), x)
        if self.style.scale_shift:
            scale, shift = v.chunk(2, dim=1)
            h = functional.silu(self.norm_out(h) * (1 + scale) + shift)
        else:
            h = functional.silu(self.norm_out(h + v))
        h = self.conv_out(functional.dropout(h, self.dropout, self.training))
        return self.attention((self.skip(self.resample(x)) + h) * self.style.k)
