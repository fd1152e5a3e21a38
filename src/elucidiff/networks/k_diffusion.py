"""k-diffusion's first network for images, "image_v1": a U-Net of levels with depths of their own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..component import require
from .dit import from_patches, to_patches
from .embedding import Fourier, add_augmentation, check_batch, labels_for, noise_levels
from .layers import CONVOLUTIONS, Conv, Linear, kaiming, per_channel
from .levels import check_image_shape, check_images, check_sides
from .network import Network, run
from .resampling import Downsample, Upsample

TAPS = (1.0, 3.0, 3.0, 1.0)  # of the resampling filter
_GROUP, _HEAD = 32, 64  # channels of a group of the norms, and of a head of attention, at least
_DROPOUTS = {1: functional.dropout1d, 2: functional.dropout2d, 3: functional.dropout3d}  # of whole channels


class KDiffusionV1(Network, kind="k_diffusion_v1"):
    """The network "image_v1" of k-diffusion, for images (C, H, W), signals (C, L) and volumes (C, D, H, W).

    Each level has its own width, depth and attention. The decoder mirrors the encoder block for block, and takes from
    each of its levels the last output only. The embedding scales and shifts the normalised features; halving and
    doubling reflect at the borders. The defaults are k-diffusion's for CIFAR-10, without its dropout of 0.05 and
    its 9 augment labels.

    `patch`: squares of so many pixels a side become channels. `variance`: the network also predicts a log variance, in
    one more channel, which F leaves out. Labels are k-diffusion's mapping_cond: any vectors, not only classes.
    Its 9 augment labels are: mirrored x, mirrored y, scale, cos - 1 and sin of the rotation, two of the anisotropy, two
    of the translation; zeros for images as they are.

    Source: Crowson, k-diffusion (MIT). Written from its structure; equal in function to its release 0.1.1.post1 (random
    weights, 1e-14 in float64), except that dropout in attention is for training only. No weights trained with it were
    at hand.
    """

    formula: ClassVar[str] = "k-diffusion U-Net"
    references: ClassVar[tuple[str, ...]] = ("edm",)

    widths: tuple[int, ...] = (128, 256, 512)  # channels of each level, the highest resolution first
    depths: tuple[int, ...] = (2, 4, 4)  # blocks of each level, in the encoder and in the decoder
    attends: tuple[bool, ...] = (False, True, True)  # which levels have attention, after each block
    mapping: int = 256  # width of the embedding
    patch: int = 1
    variance: bool = False

    def validate(self) -> None:
        """Raise ValueError where a size is out of its range."""
        super().validate()
        n = len(self.widths)
        require(
            n > 0 and n == len(self.depths) == len(self.attends),
            f"widths, depths, attends: got {n}, {len(self.depths)} and {len(self.attends)} levels; expected as many",
        )
        require(min(self.depths) > 0, f"depths: got {self.depths}; expected 1 or more")
        require(self.mapping > 0 and self.mapping % 2 == 0, f"mapping: got {self.mapping}; expected 2, 4, 6, ...")
        require(self.patch > 0, f"patch: got {self.patch}; expected 1 or more pixels")
        require(
            all(w > 0 and not (w % max(1, w // _GROUP) or 2 * w % max(1, 2 * w // _GROUP)) for w in self.widths),
            f"widths: got {self.widths}; expected multiples of {_GROUP}, or less than {_GROUP}",
        )
        # The last attention of a decoder's level has the channels of the level above.
        pairs = zip(self.widths, self.widths[:1] + self.widths[:-1], self.attends, strict=True)
        odd = [w for *both, attends in pairs for w in both if attends and w % max(1, w // _HEAD)]
        require(not odd, f"widths: got {odd} with attention; expected multiples of {_HEAD}, or less than {2 * _HEAD}")

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new module. Raises ValueError for shapes that are not images or do not halve often enough."""
        check_image_shape(self.kind, shape, label_dim, 0)
        _check_sides(shape[1:], self.patch, len(self.widths) - 1)
        return KDiffusionUNet(self, shape, label_dim)


class KDiffusionUNet(nn.Module):
    """The module of `KDiffusionV1`: x (B, C, *size), c_noise () or (B,) -> F (B, C, *size).

    h_0 = conv1x1( patches(x) ),   h_i = encoder_i(h_(i-1)),   i = 1 .. n
    u_n = decoder_n(h_n),          u_i = decoder_i([u_(i+1), h_i])
    F   = pixels( conv1x1(u_1) )
    """

    def __init__(self, config: KDiffusionV1, shape: tuple[int, ...], label_dim: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.patch, self.variance, self.halvings = config.patch, config.variance, len(config.widths) - 1
        dims, widths = len(shape) - 1, config.widths
        entries = shape[0] * config.patch**dims
        self.embedding = Mapping(config.mapping, label_dim, config.augment_dim)
        self.stem = Conv(entries, widths[0], 1, dims=dims, init=kaiming)
        above = (widths[0], *widths[:-1])
        self.encoder = nn.ModuleList(
            Level(config, i, dims, above[i], w, down=i > 0, up=False) for i, w in enumerate(widths)
        )
        self.decoder = nn.ModuleList(
            Level(config, i, dims, w if i == self.halvings else 2 * w, above[i], down=False, up=i > 0)
            for i, w in reversed(list(enumerate(widths)))
        )
        self.conv = Conv(widths[0], entries + config.variance, 1, dims=dims, gain=0.0, init=kaiming)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F (B, C, *size). Raises ValueError for samples or labels that do not fit the network."""
        check_images(x, self.shape, 0)
        _check_sides(tuple(x.shape[2:]), self.patch, self.halvings)
        emb = self.embedding(c_noise, labels, augment_labels)
        check_batch(x, emb)
        grid = [side // self.patch for side in x.shape[2:]]
        h = self.stem(to_patches(x, self.patch).transpose(1, 2).unflatten(2, grid))
        outputs = [h := level(h, emb) for level in self.encoder][:-1]
        for level in self.decoder:
            h = level(h, emb)
            h = torch.cat([h, outputs.pop()], dim=1) if outputs else h
        h = self.conv(h)
        F = h[:, :-1] if self.variance else h
        return from_patches(F.flatten(2).transpose(1, 2), x.shape[1], grid, self.patch)


class Level(nn.Module):
    """The blocks at one resolution, after what halves it or before what doubles it; between them all channels are w."""

    def __init__(self, config: KDiffusionV1, i: int, dims: int, c_in: int, c_out: int, *, down: bool, up: bool) -> None:
        super().__init__()
        w, depth = config.widths[i], config.depths[i]
        channels = [c_in, *[w] * (depth - 1), c_out]
        self.down = ReflectingDown(TAPS, dims) if down else None
        self.blocks = nn.ModuleList(
            Block(config, dims, channels[j], w, channels[j + 1], attention=config.attends[i]) for j in range(depth)
        )
        self.up = ReflectingUp(TAPS, dims) if up else None
        self.checkpointed = config.checkpoint_activations

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """The last block's output, at the next level's resolution where this one doubles."""
        x = x if self.down is None else self.down(x)
        for block in self.blocks:
            x = run(block, x, emb, checkpointed=self.checkpointed)
        return x if self.up is None else self.up(x)


class Mapping(nn.Module):
    """The vector that tells every block the noise level and the conditions: (1 or B, C).

    e   = [cos 2 pi f c_noise, sin 2 pi f c_noise] + W_label label + W_augment augment_label,   f ~ N(0, 1)
    emb = gelu( linear1( gelu( linear0(e) ) ) )
    """

    def __init__(self, channels: int, label_dim: int, augment_dim: int) -> None:
        super().__init__()
        self.label_dim, self.augment_dim = label_dim, augment_dim
        self.fourier = Fourier(channels)
        self.fourier.freqs /= 16  # theirs are N(0, 1)
        self.label = Linear(label_dim, channels, bias=False, init=kaiming) if label_dim else None
        self.augment = Linear(augment_dim, channels, bias=False, init=kaiming) if augment_dim else None
        self.linear0 = Linear(channels, channels, init=_orthogonal)
        self.linear1 = Linear(channels, channels, init=_orthogonal)

    def forward(self, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """Features (1, C) if all that was given holds for the whole batch, else (B, C)."""
        sines, cosines = self.fourier(noise_levels(c_noise, self.linear0.weight)).chunk(2, dim=1)
        e = torch.cat([cosines, sines], dim=1).to(self.linear0.weight)
        labels = labels_for(labels, self.label_dim, e)
        if self.label is not None and labels is not None:
            e = e + self.label(labels)
        e = add_augmentation(e, self.augment, augment_labels, self.augment_dim)
        return functional.gelu(self.linear1(functional.gelu(self.linear0(e))))


class Block(nn.Module):
    """A residual block, then attention where asked: (B, C_in, *size), emb -> (B, C_out, *size).

    h = dropout( conv3x3( gelu( norm(x, emb) ) ) )        C_mid channels
    h = dropout( conv3x3( gelu( norm(h, emb) ) ) )
    y = skip(x) + h                                       skip is a 1x1 convolution where the channels change
    """

    def __init__(self, config: KDiffusionV1, dims: int, c_in: int, c_mid: int, c_out: int, *, attention: bool) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm_in = AdaptiveNorm(config.mapping, c_in)
        self.conv_in = Conv(c_in, c_mid, 3, dims=dims, init=kaiming)
        self.norm_out = AdaptiveNorm(config.mapping, c_mid)
        self.conv_out = Conv(c_mid, c_out, 3, dims=dims, gain=0.0, init=kaiming)
        self.skip = nn.Identity() if c_in == c_out else Mix(c_in, c_out, 1, dims=dims, init=_orthogonal)
        self.attention = Attention(config, dims, c_out) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """The block's output."""
        drop = _DROPOUTS[x.ndim - 2]
        h = drop(self.conv_in(functional.gelu(self.norm_in(x, emb))), self.dropout, self.training)
        h = drop(self.conv_out(functional.gelu(self.norm_out(h, emb))), self.dropout, self.training)
        x = self.skip(x) + h
        return x if self.attention is None else self.attention(x, emb)


class AdaptiveNorm(nn.Module):
    """groupnorm(x) (1 + scale) + shift, with scale, shift = W emb + b; groups of 32 channels or a few more."""

    def __init__(self, emb_channels: int, channels: int) -> None:
        super().__init__()
        self.groups = max(1, channels // _GROUP)
        self.affine = Linear(emb_channels, 2 * channels, gain=0.0, init=kaiming)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Normalised, scaled and shifted."""
        scale, shift = per_channel(self.affine(emb), x).chunk(2, dim=1)
        return functional.group_norm(x, self.groups, eps=1e-5) * (1 + scale) + shift


class Attention(nn.Module):
    """Self-attention of all pixels and its residual sum, in heads of 64 channels or more.

    The output channels of W_qkv are ordered (q, k, v), head, channel. Dropout of the attention's weights is for
    training only; k-diffusion 0.1.1 leaves it on in sampling.
    """

    def __init__(self, config: KDiffusionV1, dims: int, channels: int) -> None:
        super().__init__()
        self.dropout, self.heads = config.dropout, max(1, channels // _HEAD)
        self.norm = AdaptiveNorm(config.mapping, channels)
        self.qkv = Conv(channels, 3 * channels, 1, dims=dims, init=kaiming)
        self.proj = Conv(channels, channels, 1, dims=dims, gain=0.0, init=kaiming)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """The sum of x and what its pixels found in one another."""
        qkv = self.qkv(self.norm(x, emb)).reshape(len(x), 3, self.heads, x.shape[1] // self.heads, -1)
        q, k, v = qkv.transpose(-1, -2).contiguous().unbind(1)
        p = self.dropout if self.training else 0.0
        a = functional.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return x + self.proj(a.transpose(-1, -2).reshape(x.shape))


class Mix(Conv):
    """A convolution without a bias."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_parameter("bias", None)


class ReflectingDown(Downsample):
    """Filter and halve, the image continued by its mirror image: (B, C, *size) -> (B, C, *size / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """The smaller image."""
        wide = functional.pad(x, (1, 1) * (x.ndim - 2), mode="reflect")
        return CONVOLUTIONS[x.ndim - 2](wide, self._depthwise(x), stride=2, groups=x.shape[1])


class ReflectingUp(Upsample):
    """Double and filter, the image continued by its mirror image: (B, C, *size) -> (B, C, 2 *size)."""

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        y = super().forward(functional.pad(x, (1, 1) * (x.ndim - 2), mode="reflect"))
        inside: tuple[slice, ...] = (slice(None), slice(None), *[slice(2, -2)] * (x.ndim - 2))
        return y[inside]


def _orthogonal(weight: Tensor, bias: Tensor | None) -> None:
    kaiming(weight, bias)
    if not weight.is_meta:
        nn.init.orthogonal_(weight)


def _check_sides(sides: tuple[int, ...], patch: int, halvings: int) -> None:
    """Raise ValueError unless sides can be cut into patches, halved so often, and mirrored at the last level."""
    fits = patch * 2**halvings
    if any(side % patch for side in sides):
        raise ValueError(f"image of {' x '.join(map(str, sides))}: sides must be multiples of {fits}, patch = {patch}")
    check_sides(tuple(side // patch for side in sides), halvings)
    if halvings and min(sides) < 2 * fits:
        raise ValueError(f"image of {' x '.join(map(str, sides))}: sides must be at least {2 * fits}; use fewer levels")
