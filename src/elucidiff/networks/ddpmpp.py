"""DDPM++: the network of the VP column, and EDM's default for 32 x 32 and 64 x 64 pictures."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..component import require
from .layers import NoiseEmbedding
from .network import Network, check_shape
from .unet import UNet


class DDPMPP(Network, kind="ddpmpp"):
    """The U-Net of DDPM++, for images (C, H, W). The defaults are the published CIFAR-10 network.

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

    def validate(self) -> None:
        """Raise ValueError where a size is out of its range."""
        super().validate()
        require(self.channels > 0 and self.channels % 4 == 0, f"channels: got {self.channels}; expected 4, 8, 12, ...")
        require(
            len(self.multipliers) > 0 and min(self.multipliers) > 0,
            f"multipliers: got {self.multipliers}; expected one positive number a level",
        )
        require(self.blocks > 0, f"blocks: got {self.blocks}; expected 1 or more")
        require(self.channel_mult_emb > 0, f"channel_mult_emb: got {self.channel_mult_emb}; expected 1 or more")

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new U-Net. Raises ValueError for shapes that are not images or do not halve often enough."""
        check_shape(shape, label_dim)
        if len(shape) != 3:
            raise ValueError(f"shape: got {shape}; ddpmpp takes images (channels, height, width); use mlp instead")
        emb_channels = self.channel_mult_emb * self.channels
        return UNet(
            (shape[0], shape[1], shape[2]),
            NoiseEmbedding(self.channels, emb_channels, label_dim, self.augment_dim),
            emb_channels=emb_channels,
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=self.attention,
            dropout=self.dropout,
        )
