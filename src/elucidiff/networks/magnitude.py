"""Magnitude-preserving operations: unit variance in, unit variance out, by construction and not by norms (EDM2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..component import require
from ..tensors import here
from .embedding import Wide
from .layers import CONVOLUTIONS, attend, heads_of, split_heads

EPS = 1e-4
SILU_GAIN = 1 / 0.596  # the root mean square of silu(n), n ~ N(0, 1), is 0.596


def normalize(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Unit mean square of the n entries of x along dims: x / (1e-4 + ||x|| / sqrt(n)).

    The norm is taken in float32 or wider; the result has the dtype of x.
    """
    n = math.prod(x.shape[d] for d in dims)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (EPS + norm / math.sqrt(n)).to(x.dtype)


def normalize_weight(w: Tensor) -> Tensor:
    """A weight (out, *) with unit mean square of each output's entries."""
    return normalize(w, tuple(range(1, w.ndim)))


def pixel_norm(x: Tensor) -> Tensor:
    """Unit mean square over the channels of each pixel of x (B, C, *size)."""
    return normalize(x, (1,))


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596. [EDM2] eq. 81."""
    return functional.silu(x) * SILU_GAIN


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2). [EDM2] eq. 88."""
    return torch.lerp(a, b, t) * (1 / math.hypot(1 - t, t))


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Concatenation of a (B, N_a, *) and b (B, N_b, *) along the channels, weighted 1 - t and t. [EDM2] eq. 103.

    [a K (1 - t) / sqrt(N_a), b K t / sqrt(N_b)],   K = sqrt((N_a + N_b) / ((1 - t)^2 + t^2))
    """
    n_a, n_b = a.shape[1], b.shape[1]
    K = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
    return torch.cat([a * (K * (1 - t) / math.sqrt(n_a)), b * (K * t / math.sqrt(n_b))], dim=1)


class MPFourier(Wide):
    """Fourier features of the noise level, (B,) -> (B, C): sqrt(2) cos(f c_noise + phase). [EDM2] eq. 75.

    f ~ 2 pi N(0, 1) and phase ~ 2 pi U(0, 1) are drawn once; the 2 pi is in what is stored.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        require(channels > 0, f"Fourier features: got {channels}; expected 1 or more")
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, c_noise: Tensor) -> Tensor:
        """The features, in the dtype of c_noise."""
        angle = torch.outer(c_noise, self.freqs.to(c_noise.dtype)) + self.phases.to(c_noise.dtype)
        return angle.cos() * math.sqrt(2)


class MPLayer(nn.Module):
    """A linear layer or convolution without bias whose effective weight has unit norm for each output.

    The weight used is gain normalize(w) / sqrt(n), n = the entries of an output. `forward` leaves the stored w as it
    is, in training too; `normalize_weights` replaces it. w (out, in): (*, in) -> (*, out); w (out, in, *kernel):
    (B, in, *size) -> (B, out, *size). Source: [EDM2] eq. 66.
    """

    def __init__(self, in_channels: int, out_channels: int, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def effective(self, gain: Tensor | float = 1.0) -> Tensor:
        """The weight used."""
        return normalize_weight(self.weight) * (gain / math.sqrt(self.weight[0].numel()))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """The layer's output."""
        w = self.effective(gain)
        if w.ndim == 2:
            return functional.linear(x, w)
        return CONVOLUTIONS[w.ndim - 2](x, w, padding=w.shape[-1] // 2)


@torch.no_grad()
def normalize_weights(module: nn.Module) -> None:
    """Replace the stored weights of all magnitude-preserving layers in a module by normalize(w), in place.

    Forced weight normalisation of [EDM2], once a training step before the loss: the step of the optimiser then
    is relative to a weight of unit magnitude, and the learning rate means the same throughout.
    """
    for layer in module.modules():
        if isinstance(layer, MPLayer):
            weight = here(layer.weight)  # of shared weights each process has some outputs whole
            weight.copy_(normalize_weight(weight))


class MPAttention(nn.Module):
    """Cosine attention of all pixels and its residual sum: (B, C, *size) -> (B, C, *size). [EDM2] app. B.

        q, k, v = normalize(W_qkv x), over the channels of each head
        y = mp_sum( x, W_proj softmax(q k^T / sqrt(C / heads)) v ; t )

    The output channels of W_qkv are ordered head first, then channel, then (q, k, v).
    """

    def __init__(self, channels: int, head_channels: int, dims: int, balance: float) -> None:
        super().__init__()
        self.heads = heads_of(channels, head_channels)
        self.balance = balance
        self.qkv = MPLayer(channels, 3 * channels, *[1] * dims)
        self.proj = MPLayer(channels, channels, *[1] * dims)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of x and what its pixels found in one another."""
        q, k, v = (normalize(part, (3,)) for part in split_heads(self.qkv(x), self.heads))
        return mp_sum(x, self.proj(attend(q, k, v, x)), self.balance)
