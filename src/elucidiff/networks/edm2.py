"""The EDM2 U-Net: magnitudes are preserved by every layer, in activations, weights and updates."""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..component import require
from .embedding import add_augmentation, check_batch, labels_for, noise_levels
from .layers import per_channel
from .levels import Plan, attending, check_image_shape, check_images, check_sizes, decoder, encoder, middle
from .magnitude import MPAttention, MPFourier, MPLayer, mp_cat, mp_silu, mp_sum, normalize_weights, pixel_norm
from .network import Network, run
from .resampling import Downsample, Upsample

BALANCE = 0.3  # share of a branch in a residual sum
CLIP = 256.0  # activations beyond are a failure of training: float16 would overflow


class EDM2(Network, kind="edm2"):
    """The U-Net of EDM2 (its configuration G), for images (C, H, W), signals (C, L) and volumes (C, D, H, W).

    Every layer preserves the magnitude of its input in expectation; there are no biases and no group norms. Training
    calls `normalize_weights()` of the module once a step, before the loss; evaluation changes no weight.
    `module.uncertainty(c_noise)` is u(sigma), (B,), of the loss with learned uncertainty. To be used with EDM's
    preconditioning and sigma_data 0.5. The defaults are the published size XS.

    `attention` lists resolutions as in `DDPMPP`; at these, all blocks of encoder and decoder attend, with heads of 64
    channels. Source: Karras et al. 2024 [EDM2].
    """

    formula: ClassVar[str] = "EDM2 U-Net"
    references: ClassVar[tuple[str, ...]] = ("edm2",)

    channels: int = 128  # C
    multipliers: tuple[int, ...] = (1, 2, 3, 4)  # channels of a level over C, from the highest resolution down
    blocks: int = 3  # residual blocks a level
    attention: tuple[int, ...] = (16, 8)  # resolutions
    head_channels: int = 64  # at least so many channels a head
    logvar_channels: int = 128  # features of the uncertainty u(sigma); 0: the network has none

    def validate(self) -> None:
        """Raise ValueError where a size is out of its range."""
        super().validate()
        check_sizes(self.channels, self.multipliers, self.blocks, multiple=1)
        require(self.head_channels > 0, f"head_channels: got {self.head_channels}; expected 1 or more")
        require(self.logvar_channels >= 0, f"logvar_channels: got {self.logvar_channels}; expected 0 or more")

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new U-Net. Raises ValueError for shapes that are not images or do not halve often enough."""
        check_image_shape(self.kind, shape, label_dim, len(self.multipliers) - 1)
        widths = tuple(self.channels * m for m in self.multipliers)
        plan = Plan(
            stem=self.channels,
            widths=widths,
            blocks=self.blocks,
            attends=attending(shape, len(widths), self.attention),
            in_every_decoder_block=True,
        )
        embedding = MPEmbedding(self.channels, max(widths), label_dim, self.augment_dim)
        return EDM2UNet(
            shape,
            embedding,
            plan,
            emb_channels=max(widths),
            head_channels=self.head_channels,
            logvar_channels=self.logvar_channels,
            dropout=self.dropout,
            checkpointed=self.checkpoint_activations,
        )


class MPEmbedding(nn.Module):
    """The noise level and the class as one vector of unit mean square.

        emb = mp_silu( mp_sum( W_noise fourier(c_noise), W_label (sqrt(label_dim) label); 0.5 ) )

    Augment labels, which the published networks do not take, are added inside without a factor, so that absent ones
    change nothing.
    """

    def __init__(self, channels: int, emb_channels: int, label_dim: int, augment_dim: int) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.augment_dim = augment_dim
        self.fourier = MPFourier(channels)
        self.noise = MPLayer(channels, emb_channels)
        self.label = MPLayer(label_dim, emb_channels) if label_dim else None
        self.augment = MPLayer(augment_dim, emb_channels) if augment_dim else None

    def forward(self, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """(1, emb_channels) if all that was given holds for the whole batch, else (B, emb_channels)."""
        weight = self.noise.weight
        e = self.noise(self.fourier(noise_levels(c_noise, weight)).to(weight))
        labels = labels_for(labels, self.label_dim, e)
        if self.label is not None and labels is not None:
            e = mp_sum(e, self.label(labels * math.sqrt(self.label_dim)), 0.5)
        return mp_silu(add_augmentation(e, self.augment, augment_labels, self.augment_dim))


class MPBlock(nn.Module):
    """The residual block of EDM2: (B, C_in, *size), emb -> (B, C_out, *size').

        encoder:  x = pixel_norm( skip( resample(x) ) ),   y = conv3x3( mp_silu(x) )
        decoder:  x = resample(x),                         y = conv3x3( mp_silu(x) ),   x = skip(x)
        y = conv3x3( dropout( mp_silu( y (1 + gain W emb) ) ) )
        x = clip( attention( mp_sum(x, y; 0.3) ), +-256 )

    skip is a 1x1 convolution where the channels change; the gain starts at 0. Source: [EDM2] app. B.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        head_channels: int,
        dims: int,
        encodes: bool,
        dropout: float = 0.0,
        resample: nn.Module | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.encodes = encodes
        self.dropout = dropout
        self.resample = resample or nn.Identity()
        first = out_channels if encodes else in_channels
        self.conv_in = MPLayer(first, out_channels, *[3] * dims)
        self.affine = MPLayer(emb_channels, out_channels)
        self.gain = nn.Parameter(torch.zeros(()))
        self.conv_out = MPLayer(out_channels, out_channels, *[3] * dims)
        keeps = in_channels == out_channels
        self.skip = nn.Identity() if keeps else MPLayer(in_channels, out_channels, *[1] * dims)
        self.attention = MPAttention(out_channels, head_channels, dims, BALANCE) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """The block's output; emb (1, E) serves the whole batch, (B, E) one sample a row."""
        x = self.resample(x)
        if self.encodes:
            x = pixel_norm(self.skip(x))
        y = self.conv_in(mp_silu(x))
        y = mp_silu(y * per_channel(1 + self.affine(emb, self.gain), y))
        y = self.conv_out(functional.dropout(y, self.dropout, self.training))
        if not self.encodes:
            x = self.skip(x)
        return self.attention(mp_sum(x, y, BALANCE)).clip(-CLIP, CLIP)


class Uncertainty(nn.Module):
    """u(sigma) = W fourier(c_noise), the learned logarithm of the loss's scale: () or (B,) -> (1,) or (B,)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fourier = MPFourier(channels)
        self.linear = MPLayer(channels, 1)

    def forward(self, c_noise: Tensor) -> Tensor:
        """u, in the dtype of the weights."""
        weight = self.linear.weight
        return self.linear(self.fourier(noise_levels(c_noise, weight)).to(weight))[:, 0]


class EDM2UNet(nn.Module):
    """The module of `EDM2`: x (B, C, *size), c_noise () or (B,) -> F (B, C, *size).

    Encoder and decoder have the levels of `UNet`. The input gets one channel more, of ones, in place of biases; skips
    are joined by `mp_cat`; the output is a 3x3 convolution whose gain starts at 0.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        embedding: MPEmbedding,
        plan: Plan,
        *,
        emb_channels: int,
        head_channels: int,
        logvar_channels: int,
        dropout: float,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.halvings = len(plan.widths) - 1
        self.checkpointed = checkpointed
        dims = len(shape) - 1
        make = functools.partial(
            MPBlock, emb_channels=emb_channels, head_channels=head_channels, dims=dims, dropout=dropout
        )
        encode, decode = functools.partial(make, encodes=True), functools.partial(make, encodes=False)
        self.embedding = embedding
        self.stem = MPLayer(shape[0] + 1, plan.stem, *[3] * dims)
        self.encoder = encoder(plan, encode, Downsample, checkpointed=checkpointed)
        self.middle = middle(plan, decode)
        self.decoder = decoder(plan, decode, Upsample, join=mp_cat, checkpointed=checkpointed)
        self.conv = MPLayer(plan.widths[0], shape[0], *[3] * dims)
        self.gain = nn.Parameter(torch.zeros(()))
        self.uncertainty = Uncertainty(logvar_channels) if logvar_channels else None

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F (B, C, *size). Raises ValueError for images or labels that do not fit the network."""
        check_images(x, self.shape, self.halvings)
        emb = self.embedding(c_noise, labels, augment_labels)
        check_batch(x, emb)
        skips = [self.stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))]
        for level in self.encoder:
            outputs, _ = level(skips[-1], emb, x)
            skips += outputs
        x = skips[-1]
        for block in self.middle:
            x = run(block, x, emb, checkpointed=self.checkpointed)
        for level in self.decoder:
            x = level(x, emb, skips)
        return self.conv(x, self.gain)

    def normalize_weights(self) -> None:
        """Forced weight normalisation, in place: once a training step, before the loss."""
        normalize_weights(self)
