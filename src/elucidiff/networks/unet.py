"""The U-Net: down through the levels, up again with skips."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import NEAR_ZERO, Conv, Downsample, NoiseEmbedding, ResidualBlock, Upsample, check_batch, group_norm


class EncoderLevel(nn.Module):
    """The blocks at one resolution, after the block that halves it (none at the first level)."""

    def __init__(self, down: ResidualBlock | None, blocks: list[ResidualBlock]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """The outputs of all blocks; each becomes a skip."""
        outputs = [x] if self.down is None else [self.down(x, emb)]
        for block in self.blocks:
            outputs.append(block(outputs[-1], emb))
        return outputs if self.down is not None else outputs[1:]


class DecoderLevel(nn.Module):
    """The blocks at one resolution, after the block that doubles it (none at the lowest level)."""

    def __init__(self, up: ResidualBlock | None, blocks: list[ResidualBlock]) -> None:
        super().__init__()
        self.up = up
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """The last block's output. Takes its skips from the end of the list, so that they are freed."""
        if self.up is not None:
            x = self.up(x, emb)
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return x


class UNet(nn.Module):
    """The U-Net of DDPM++: x (B, C, H, W), c_noise () or (B,) -> F (B, C, H, W).

    Encoder: a 3x3 convolution; per level a down block (not at the first), then `blocks` blocks. Every
    output is kept as a skip. Decoder, from the lowest level: two middle blocks, the first with
    attention; at the other levels an up block; then blocks + 1 blocks a level, each on
    [x, last skip]. Output: group norm, silu, 3x3 convolution.

    Level l has channels * multipliers[l] channels at the resolution max(H, W) / 2^l. At a resolution
    listed in `attention` all encoder blocks and the last decoder block attend. The levels are fixed by
    `shape` when the network is built; it then takes images of any size that halves often enough.
    Source: [SDE] app. H; sizes of [EDM] table 7.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        embedding: NoiseEmbedding,
        *,
        emb_channels: int,
        channels: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        self.image_channels, height, width = shape
        self.halvings = len(multipliers) - 1
        check_sides(height, width, self.halvings)
        attends = [max(height, width) >> i in attention for i in range(len(multipliers))]
        block = functools.partial(ResidualBlock, emb_channels=emb_channels, dropout=dropout)

        self.embedding = embedding
        self.stem = Conv(self.image_channels, channels, 3)
        self.encoder = nn.ModuleList()
        c = channels
        skips = [c]
        for i, m in enumerate(multipliers):
            down = block(c, c, resample=Downsample()) if i else None
            skips += [c] * (i > 0) + [channels * m] * blocks
            level = []
            for _ in range(blocks):
                level.append(block(c, channels * m, attention=attends[i]))
                c = channels * m
            self.encoder.append(EncoderLevel(down, level))

        self.middle = nn.ModuleList([block(c, c, attention=True), block(c, c)])
        self.decoder = nn.ModuleList()
        for i, m in reversed(list(enumerate(multipliers))):
            up = block(c, c, resample=Upsample()) if len(self.decoder) else None
            level = []
            for j in range(blocks + 1):
                level.append(block(c + skips.pop(), channels * m, attention=attends[i] and j == blocks))
                c = channels * m
            self.decoder.append(DecoderLevel(up, level))

        self.norm = group_norm(c)
        self.conv = Conv(c, self.image_channels, 3, gain=NEAR_ZERO)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F (B, C, H, W). Raises ValueError for images or labels that do not fit the network."""
        self._check_images(x)
        emb = self.embedding(c_noise, labels, augment_labels)
        check_batch(x, emb)
        skips = [self.stem(x)]
        for level in self.encoder:
            skips += level(skips[-1], emb)
        x = skips[-1]
        for block in self.middle:
            x = block(x, emb)
        for level in self.decoder:
            x = level(x, emb, skips)
        return self.conv(functional.silu(self.norm(x)))

    def _check_images(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.image_channels:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}; this network takes (batch, {self.image_channels}, height, width)"
            )
        check_sides(x.shape[2], x.shape[3], self.halvings)


def check_sides(height: int, width: int, halvings: int) -> None:
    """Raise ValueError unless an image can be halved so often, saying which sizes could."""
    factor = 2**halvings
    if height % factor or width % factor:
        fit = " x ".join(str(math.ceil(side / factor) * factor) for side in (height, width))
        raise ValueError(
            f"image of {height} x {width}: {halvings} halvings need sides that are multiples of {factor}; "
            f"pad it to {fit}, or use fewer levels (multipliers)"
        )
