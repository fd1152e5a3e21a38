"""ADM: the network of Dhariwal and Nichol, EDM's for ImageNet-64."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..component import require
from .blocks import Style
from .embedding import LateLabelEmbedding
from .layers import kaiming
from .levels import Plan, attending, check_image_shape, check_sizes
from .network import Network
from .unet import UNet


class ADM(Network, kind="adm"):
    """The U-Net of ADM, for images (C, H, W), signals (C, L) and volumes (C, D, H, W).

    The embedding scales and shifts the normalised features; attention has heads of 64 channels and, at a listed
    resolution, is in all blocks of encoder and decoder; residual sums are not scaled. The defaults are the
    published ImageNet-64 network.

    `attention` lists resolutions as in `DDPMPP`. `doubled_output`: the network predicts a mean and a variance, as
    iDDPM trains it, and F is the first half. Source: Dhariwal and Nichol 2021; [EDM] table 7.
    """

    formula: ClassVar[str] = "ADM U-Net"
    references: ClassVar[tuple[str, ...]] = ("adm", "edm")

    dropout: float = 0.1
    channels: int = 192  # C, a multiple of 4
    multipliers: tuple[int, ...] = (1, 2, 3, 4)  # channels of a level over C, from the highest resolution down
    blocks: int = 3  # residual blocks a level
    attention: tuple[int, ...] = (32, 16, 8)  # resolutions
    channel_mult_emb: int = 4  # width of the noise embedding over C
    head_channels: int = 64  # at least so many channels a head
    doubled_output: bool = False

    def validate(self) -> None:
        """Raise ValueError where a size is out of its range."""
        super().validate()
        check_sizes(self.channels, self.multipliers, self.blocks)
        require(self.channel_mult_emb > 0, f"channel_mult_emb: got {self.channel_mult_emb}; expected 1 or more")
        require(self.head_channels > 0, f"head_channels: got {self.head_channels}; expected 1 or more")

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new U-Net. Raises ValueError for shapes that are not images or do not halve often enough."""
        check_image_shape(self.kind, shape, label_dim, len(self.multipliers) - 1)
        emb_channels = self.channel_mult_emb * self.channels
        widths = tuple(self.channels * m for m in self.multipliers)
        return UNet(
            shape,
            LateLabelEmbedding(self.channels, emb_channels, label_dim, self.augment_dim, init=kaiming),
            Plan(
                stem=widths[0],
                widths=widths,
                blocks=self.blocks,
                attends=attending(shape, len(widths), self.attention),
                in_every_decoder_block=True,
            ),
            emb_channels=emb_channels,
            dropout=self.dropout,
            style=Style(
                dims=len(shape) - 1,
                eps=1e-5,
                k=1.0,
                scale_shift=True,
                head_channels=self.head_channels,
                resample_skips=False,
                init=kaiming,
                qkv_gain=1.0,
                last_gain=0.0,
            ),
            doubled_output=self.doubled_output,
            checkpointed=self.checkpoint_activations,
        )
