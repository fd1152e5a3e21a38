"""DDPM++: the network of the VP column, and EDM's default for 32 x 32 and 64 x 64 pictures."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..component import require
from .blocks import Style
from .embedding import NoiseEmbedding
from .levels import Plan, attending, check_image_shape, check_sizes
from .network import Network
from .patched import Patched, check_patch
from .unet import UNet


class DDPMPP(Network, kind="ddpmpp"):
    """The U-Net of DDPM++, for images (C, H, W), and for signals (C, L) and volumes (C, D, H, W) by the same block.

    The defaults are the published CIFAR-10 network.

    `attention` lists resolutions, as published: the level at which the larger side of the configured
    image has that many pixels attends; a resolution that no level has is without effect. Source: Song
    et al. 2021 [SDE] app. H; EDM table 7 has the sizes: 64 x 64 pictures use multipliers 1, 2, 2, 2.
    """

    formula: ClassVar[str] = "DDPM++ U-Net"
    references: ClassVar[tuple[str, ...]] = ("sde", "edm")

    channels: int = 128  # C, a multiple of 4
    multipliers: tuple[int, ...] = (2, 2, 2)  # channels of a level over C, from the highest resolution down
    blocks: int = 4  # residual blocks a level
    attention: tuple[int, ...] = (16,)  # resolutions
    channel_mult_emb: int = 4  # width of the noise embedding over C
    # Side of the squares of pixels that are folded into channels first, for images: p makes a step about p^2 times
    # cheaper at equal channels. Resolutions are then those of the folded image.
    patch: int = 1

    def validate(self) -> None:
        """Raise ValueError where a size is out of its range."""
        super().validate()
        check_sizes(self.channels, self.multipliers, self.blocks)
        require(self.patch > 0, f"patch: got {self.patch}; expected a number of pixels, 1 for none")
        require(self.channel_mult_emb > 0, f"channel_mult_emb: got {self.channel_mult_emb}; expected 1 or more")

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new U-Net. Raises ValueError for shapes that are not images or do not halve often enough."""
        if self.patch > 1:
            check_patch(shape, self.patch)
            folded = (shape[0] * self.patch**2, shape[1] // self.patch, shape[2] // self.patch)
            return Patched(self.replace(patch=1).build(folded, label_dim), self.patch)
        check_image_shape(self.kind, shape, label_dim, len(self.multipliers) - 1)
        emb_channels = self.channel_mult_emb * self.channels
        return UNet(
            shape,
            NoiseEmbedding(self.channels, emb_channels, label_dim, self.augment_dim),
            Plan(
                stem=self.channels,
                widths=tuple(self.channels * m for m in self.multipliers),
                blocks=self.blocks,
                attends=attending(shape, len(self.multipliers), self.attention),
                in_every_decoder_block=False,
            ),
            emb_channels=emb_channels,
            dropout=self.dropout,
            style=Style(dims=len(shape) - 1),
            checkpointed=self.checkpoint_activations,
        )
