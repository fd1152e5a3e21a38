"""NCSN++: the network of the VE column."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..component import require
from .blocks import Style
from .embedding import Fourier, NoiseEmbedding
from .levels import Plan, attending, check_image_shape, check_sizes
from .network import Network
from .resampling import check_taps
from .unet import DECODERS, ENCODERS, UNet


class NCSNPP(Network, kind="ncsnpp"):
    """The U-Net of NCSN++, for images (C, H, W), signals (C, L) and volumes (C, D, H, W).

    DDPM++ with three changes: Fourier features of the noise level, a wider resampling filter, and the image itself
    going down beside the blocks. The defaults are the published CIFAR-10 network.

        encoder    residual: the image, convolved and halved, is added at each level, and the sum goes on
                   skip:     the filtered and halved image is shown to each level by a 1x1 convolution
                   standard: none of this, as in DDPM++
        decoder    standard: one output, at the highest resolution
                   skip:     one at each level, added up from the lowest

    `attention` lists resolutions as in `DDPMPP`. Source: Song et al. 2021 [SDE] app. H, [EDM] table 7.
    """

    formula: ClassVar[str] = "NCSN++ U-Net"
    references: ClassVar[tuple[str, ...]] = ("sde", "edm")

    channels: int = 128  # C, a multiple of 4
    multipliers: tuple[int, ...] = (2, 2, 2)  # channels of a level over C, from the highest resolution down
    blocks: int = 4  # residual blocks a level
    attention: tuple[int, ...] = (16,)  # resolutions
    channel_mult_emb: int = 4  # width of the noise embedding over C
    channel_mult_noise: int = 2  # Fourier features over C
    encoder: str = "residual"
    decoder: str = "standard"
    taps: tuple[float, ...] = (1, 3, 3, 1)  # of the resampling filter

    def validate(self) -> None:
        """Raise ValueError where a size is out of its range or a variant does not exist."""
        super().validate()
        check_sizes(self.channels, self.multipliers, self.blocks)
        require(self.channel_mult_emb > 0, f"channel_mult_emb: got {self.channel_mult_emb}; expected 1 or more")
        require(self.channel_mult_noise > 0, f"channel_mult_noise: got {self.channel_mult_noise}; expected 1 or more")
        require(self.encoder in ENCODERS, f"encoder: got {self.encoder!r}; expected one of {', '.join(ENCODERS)}")
        require(self.decoder in DECODERS, f"decoder: got {self.decoder!r}; expected one of {', '.join(DECODERS)}")
        check_taps(self.taps)

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new U-Net. Raises ValueError for shapes that are not images or do not halve often enough."""
        check_image_shape(self.kind, shape, label_dim, len(self.multipliers) - 1)
        emb_channels = self.channel_mult_emb * self.channels
        features = self.channel_mult_noise * self.channels
        return UNet(
            shape,
            NoiseEmbedding(features, emb_channels, label_dim, self.augment_dim, fourier=Fourier(features)),
            Plan(
                stem=self.channels,
                widths=tuple(self.channels * m for m in self.multipliers),
                blocks=self.blocks,
                attends=attending(shape, len(self.multipliers), self.attention),
                in_every_decoder_block=False,
            ),
            emb_channels=emb_channels,
            dropout=self.dropout,
            style=Style(dims=len(shape) - 1, taps=self.taps),
            encoder_type=self.encoder,
            decoder_type=self.decoder,
            checkpointed=self.checkpoint_activations,
        )
