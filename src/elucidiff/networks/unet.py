"""The U-Net of DDPM++, NCSN++ and ADM: down through the levels, up again with skips."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import ResidualBlock, Style
from .embedding import check_batch
from .layers import SQRT_HALF
from .levels import Plan, check_images, decoder, encoder, middle
from .network import run
from .resampling import DownConv

ENCODERS = ("standard", "residual", "skip")
DECODERS = ("standard", "skip")


class ResidualAux(nn.Module):
    """The residual encoder: the image, convolved and halved, is added at each level and goes on from there.

    x, a -> y, y with y = ( x + downconv(a) ) sqrt(1/2); a is the input image at first. Source: [SDE] app. H.
    """

    def __init__(self, image_channels: int, channels: int, style: Style) -> None:
        super().__init__()
        self.residual = DownConv(image_channels, channels, style.taps, dims=style.dims, init=style.init)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, as main path and as auxiliary path."""
        y = (x + self.residual(image)) * SQRT_HALF
        return y, y


class SkipAux(nn.Module):
    """The skip encoder: the filtered and halved image is shown to each level. x, a -> x + conv1x1(a'), a'."""

    def __init__(self, image_channels: int, channels: int, style: Style) -> None:
        super().__init__()
        self.down = style.down()
        self.skip = style.conv(image_channels, channels, 1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, and the smaller image."""
        image = self.down(image)
        return x + self.skip(image), image


class Head(nn.Module):
    """conv3x3( silu( groupnorm(x) ) ), near zero at the start: (B, C, *size) -> (B, image channels, *size)."""

    def __init__(self, channels: int, image_channels: int, style: Style) -> None:
        super().__init__()
        self.norm = style.norm(channels)
        self.conv = style.conv(channels, image_channels, 3, gain=style.last_gain)

    def forward(self, x: Tensor) -> Tensor:
        """What a level says about the image."""
        return self.conv(functional.silu(self.norm(x)))


class UNet(nn.Module):
    """The U-Net of DDPM++, NCSN++ and ADM: x (B, C, *size), c_noise () or (B,) -> F (B, C, *size).

    Encoder: a 3x3 convolution; per level a down block (not at the first), then `plan.blocks` blocks. Every
    output is kept as a skip. Decoder, from the lowest level: two middle blocks, the first with
    attention; at the other levels an up block; then one block more a level, each on [x, last skip].
    Output: group norm, silu, 3x3 convolution.

    NCSN++ has a second path down, for the image (`ResidualAux`, `SkipAux`), and in its skip decoder a second
    one up: every level's output is added to the doubled image of the level below.

    The levels are fixed by `shape` (C, *size) when the network is built; it then takes images of any size that halves
    often enough. Source: [SDE] app. H; Dhariwal and Nichol 2021; sizes of [EDM] table 7.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        embedding: nn.Module,
        plan: Plan,
        *,
        emb_channels: int,
        dropout: float,
        style: Style,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        doubled_output: bool = False,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.halvings = len(plan.widths) - 1
        self.doubled_output = doubled_output
        self.checkpointed = checkpointed
        outputs = shape[0] * (2 if doubled_output else 1)
        make = functools.partial(ResidualBlock, emb_channels=emb_channels, dropout=dropout, style=style)
        self.embedding = embedding
        self.stem = style.conv(shape[0], plan.stem, 3)
        paths = _paths(encoder_type, shape[0], plan, style)
        self.encoder = encoder(plan, make, style.down, paths=paths, checkpointed=checkpointed)
        self.middle = middle(plan, make)
        self.decoder = decoder(plan, make, style.up, join=_concatenate, checkpointed=checkpointed)
        # A skip decoder with one level has one output, which is the standard one.
        lower = plan.widths[:0:-1] if decoder_type == "skip" else ()
        self.heads = nn.ModuleList(Head(c, outputs, style) for c in lower)
        self.image_up = style.up() if lower else nn.Identity()
        self.norm = style.norm(plan.widths[0])
        self.conv = style.conv(plan.widths[0], outputs, 3, gain=style.last_gain)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F (B, C, *size). Raises ValueError for images or labels that do not fit the network."""
        check_images(x, self.shape, self.halvings)
        emb = self.embedding(c_noise, labels, augment_labels)
        check_batch(x, emb)
        skips, image = [self.stem(x)], x
        for level in self.encoder:
            outputs, image = level(skips[-1], emb, image)
            skips += outputs
        x = skips[-1]
        for block in self.middle:
            x = run(block, x, emb, checkpointed=self.checkpointed)
        below: Tensor | None = None
        for i, level in enumerate(self.decoder):
            x = level(x, emb, skips)
            if i < len(self.heads):
                below = self._added(below, self.heads[i](x))
        F = self._added(below, self.conv(functional.silu(self.norm(x))))
        return F[:, : self.shape[0]] if self.doubled_output else F

    def _added(self, below: Tensor | None, output: Tensor) -> Tensor:
        return output if below is None else self.image_up(below) + output


def _concatenate(x: Tensor, skip: Tensor) -> Tensor:
    return torch.cat([x, skip], dim=1)


def _paths(encoder_type: str, image_channels: int, plan: Plan, style: Style) -> list[nn.Module]:
    """The auxiliary path of each level but the first; none for the standard encoder."""
    joined = plan.widths[:-1]  # channels of x where each path joins it: behind the down block
    if encoder_type == "residual":
        given = [image_channels, *joined[:-1]]
        return [ResidualAux(a, c, style) for a, c in zip(given, joined, strict=False)]
    return [SkipAux(image_channels, c, style) for c in joined] if encoder_type == "skip" else []
