"""Layers of the U-Nets: convolutions, resampling, normalisation, embedding, attention, the residual block."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..component import require

SQRT_HALF = math.sqrt(0.5)  # a sum of two terms of unit variance, times this, has unit variance
NEAR_ZERO = 1e-5  # gain of the last layer of a branch: at the start a block is its skip


class Linear(nn.Linear):
    """A linear layer (*, in) -> (*, out) with Xavier uniform weights times a gain, and zero bias."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__(in_features, out_features, bias=bias)  # calls reset_parameters
        _scale(self.weight, gain)

    def reset_parameters(self) -> None:
        """Draw the weights, at gain 1."""
        _xavier(self.weight, self.bias)


class Conv(nn.Conv2d):
    """A k x k convolution (B, in, H, W) -> (B, out, H, W), initialised like `Linear`; k is odd."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, gain: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)  # calls reset_parameters
        _scale(self.weight, gain)

    def reset_parameters(self) -> None:
        """Draw the weights, at gain 1."""
        _xavier(self.weight, self.bias)


def _xavier(weight: Tensor, bias: Tensor | None) -> None:
    nn.init.xavier_uniform_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


def _scale(weight: Tensor, gain: float) -> None:
    with torch.no_grad():
        weight.mul_(gain)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in min(32, C/4) groups, the published number.

    Where that does not divide C, the greatest common divisor of the two is used, so that any width works.
    """
    return nn.GroupNorm(math.gcd(channels, min(32, max(channels // 4, 1))), channels, eps=1e-6)


class Resample(nn.Module):
    """A separable FIR filter f (k taps, k even) and a factor of two.

    With f normalised to sum 1 and padding p = (k - 1) // 2:

        down:  y[i] = sum_a f[a] x[2 i + a - p]           (zero outside the image)
        up:    y[2 i + a - p] += 2 f[a] x[i]              (the transposed convolution, gain 2 per axis)

    for each axis. [1, 1] is the mean of 2 x 2 pixels and the nearest neighbour; [1, 3, 3, 1] is the
    filter of NCSN++ (Zhang 2019, "Making Convolutional Networks Shift-Invariant Again").
    """

    fir: Tensor  # (1, 1, k, k), normalised

    def __init__(self, taps: tuple[float, ...] = (1, 1)) -> None:
        super().__init__()
        require(
            len(taps) >= 2 and len(taps) % 2 == 0 and sum(taps) != 0,
            f"resampling filter: got {taps}; expected an even number of taps whose sum is not 0, e.g. (1, 3, 3, 1)",
        )
        # Two equal taps need no filter: the pooling below is 3 to 10 times faster, and a module without
        # buffers can be made on the meta device and filled by load_state_dict(assign=True).
        self.box = len(taps) == 2 and taps[0] == taps[1]
        if not self.box:
            f = torch.tensor(taps, dtype=torch.get_default_dtype())
            self.register_buffer("fir", (torch.outer(f, f) / f.sum() ** 2)[None, None], persistent=False)

    def _depthwise(self, channels: int) -> Tensor:
        return self.fir.expand(channels, 1, -1, -1)

    @property
    def _padding(self) -> int:
        return (self.fir.shape[-1] - 1) // 2


class Downsample(Resample):
    """Filter and halve: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def forward(self, x: Tensor) -> Tensor:
        """The smaller image."""
        if self.box:
            return functional.avg_pool2d(x, 2)
        c = x.shape[1]
        return functional.conv2d(x, self._depthwise(c), stride=2, padding=self._padding, groups=c)


class Upsample(Resample):
    """Double and filter: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        if self.box:
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        c = x.shape[1]
        return functional.conv_transpose2d(x, 4 * self._depthwise(c), stride=2, padding=self._padding, groups=c)


def positional_embedding(c_noise: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of the noise level (B,) at n = C/2 frequencies: (B, C).

        w_i = 10000^(-i / (n - 1)),   [sin(w_0 c) .. sin(w_(n-1) c), cos(w_0 c) .. cos(w_(n-1) c)]

    The end point is included: the last frequency is 1/10000. Computed in the dtype of c_noise.
    Source: Vaswani et al. 2017, section 3.5, in the form of Ho et al. 2020.
    """
    n = channels // 2
    i = torch.arange(n, dtype=c_noise.dtype, device=c_noise.device)
    angle = torch.outer(c_noise, 10000.0 ** (-i / (n - 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class NoiseEmbedding(nn.Module):
    """The vector that tells every block the noise level, the class and the augmentation.

        e   = positional(c_noise) + W_label (sqrt(label_dim) label) + b_label + W_augment augment_label
        emb = silu( linear1( silu( linear0(e) ) ) )

    sqrt(label_dim) gives a one-hot label unit mean square. Source: [SDE] app. H, [EDM] app. F.
    """

    def __init__(self, channels: int, emb_channels: int, label_dim: int = 0, augment_dim: int = 0) -> None:
        super().__init__()
        require(channels >= 4 and channels % 2 == 0, f"embedding: got {channels} channels; expected 4, 6, 8, ...")
        self.channels = channels
        self.label_dim = label_dim
        self.augment_dim = augment_dim
        self.label = Linear(label_dim, channels) if label_dim else None
        self.augment = Linear(augment_dim, channels, bias=False) if augment_dim else None
        self.linear0 = Linear(channels, emb_channels)
        self.linear1 = Linear(emb_channels, emb_channels)

    def forward(self, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """(1, emb_channels) if all that was given holds for the whole batch, else (B, emb_channels)."""
        weight = self.linear0.weight
        # Never in half precision: c_noise of VP goes up to 999, where float16 is off by half a radian. Not in
        # float64 in a float32 network either: the published weights were trained on the float32 sines.
        c_noise = c_noise.reshape(-1).to(torch.promote_types(weight.dtype, torch.float32))
        e = positional_embedding(c_noise, self.channels).to(weight)
        if labels is not None:
            _check_labels("labels", labels, self.label_dim)
        if self.label is not None:
            label = e.new_zeros(1, self.label_dim) if labels is None else labels.to(e)
            e = e + self.label(label * math.sqrt(self.label_dim))
        if augment_labels is not None:
            _check_labels("augment_labels", augment_labels, self.augment_dim)
            if self.augment is not None:
                e = e + self.augment(augment_labels.to(e))
        return functional.silu(self.linear1(functional.silu(self.linear0(e))))


def _check_labels(name: str, given: Tensor, width: int) -> None:
    if width == 0:
        raise ValueError(f"{name}: got a tensor {tuple(given.shape)}, but this network takes none; leave {name} out")
    if given.ndim != 2 or given.shape[1] != width:
        raise ValueError(f"{name}: got shape {tuple(given.shape)}; expected (batch, {width})")


def check_batch(x: Tensor, emb: Tensor) -> None:
    """Raise ValueError where noise levels or labels come in another number than the samples x (B, *)."""
    if emb.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"got {x.shape[0]} samples with {emb.shape[0]} noise levels or labels; expected one each")


class Attention(nn.Module):
    """Self-attention of all pixels with one head, and its residual sum: (B, C, H, W) -> (B, C, H, W).

        q, k, v = W_qkv groupnorm(x)
        y = ( x + W_proj softmax(q k^T / sqrt(C)) v ) sqrt(1/2)

    The output channels of W_qkv are ordered channel first, then (q, k, v), as in the published weights.
    PyTorch's kernels keep the softmax in float32 for half-precision inputs. Those for the CPU have no forward-mode
    and no second derivatives: torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around the call has.
    Source: [SDE] app. H.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = Conv(channels, 3 * channels, 1, gain=math.sqrt(0.2))
        self.proj = Conv(channels, channels, 1, gain=NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of x and what its pixels found in one another."""
        batch, c, *_ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 1, c, 3, -1)
        # One copy, to (3, B, head, pixel, channel): the fused kernels want channels innermost.
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        a = functional.scaled_dot_product_attention(q, k, v)
        return (x + self.proj(a.transpose(-1, -2).reshape(x.shape))) * SQRT_HALF


class ResidualBlock(nn.Module):
    """The residual block of DDPM++: (B, C_in, H, W), emb -> (B, C_out, H', W').

        h = conv3x3( resample( silu( groupnorm(x) ) ) )
        h = silu( groupnorm( h + affine(emb) ) )
        h = conv3x3( dropout(h) )
        y = ( skip( resample(x) ) + h ) sqrt(1/2)        then attention, where asked

    skip is a 1x1 convolution where the channels change or the block resamples, else the identity.
    Source: [SDE] app. H, [EDM] app. F.
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
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm_in = group_norm(in_channels)
        self.resample = resample or nn.Identity()
        self.conv_in = Conv(in_channels, out_channels, 3)
        self.affine = Linear(emb_channels, out_channels)
        self.norm_out = group_norm(out_channels)
        self.conv_out = Conv(out_channels, out_channels, 3, gain=NEAR_ZERO)
        keeps = in_channels == out_channels and resample is None
        self.skip = nn.Identity() if keeps else Conv(in_channels, out_channels, 1)
        self.attention = Attention(out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """The block's output; emb (1, E) serves the whole batch, (B, E) one sample a row."""
        h = self.conv_in(self.resample(functional.silu(self.norm_in(x))))
        h = functional.silu(self.norm_out(h + self.affine(emb)[:, :, None, None]))
        h = self.conv_out(functional.dropout(h, self.dropout, self.training))
        return self.attention((self.skip(self.resample(x)) + h) * SQRT_HALF)
