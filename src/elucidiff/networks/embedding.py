"""Embeddings: the noise level, the class and the augmentation as one vector for all blocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..component import require
from .layers import Init, Linear, xavier


def positional_embedding(c_noise: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of the noise level (B,) at n = C/2 frequencies: (B, C).

        w_i = 10000^(-i / (n - 1)),   [sin(w_0 c) .. sin(w_(n-1) c), cos(w_0 c) .. cos(w_(n-1) c)]

    The end point is included: the last frequency is 1/10000. Computed in the dtype of c_noise.
    Source: Vaswani et al. 2017, section 3.5, in the form of Ho et al. 2020. DDPM++ and the MLP use it.
    """
    angle = _angles(c_noise, channels // 2, channels // 2 - 1)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def positional_embedding_exclusive(c_noise: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of the noise level (B,) at n = C/2 frequencies w_i = 10000^(-i / n): (B, C).

    The end point 1/10000 is not reached. Source: Dhariwal and Nichol 2021; ADM and DiT use it.
    """
    angle = _angles(c_noise, channels // 2, channels // 2)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def _angles(c_noise: Tensor, n: int, steps: int) -> Tensor:
    i = torch.arange(n, dtype=c_noise.dtype, device=c_noise.device)
    return torch.outer(c_noise, 10000.0 ** (-i / steps))


class Wide(nn.Module):
    """A module whose buffers stay in float32 or wider when a network becomes half precision.

    Frequencies go up to 50 and meet c_noise of size 1 within a sine: rounded to 8 bits they would be
    other frequencies, off by a radian.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Wide:
        wide = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, moved in self._buffers.items():
            if moved is not None and moved.itemsize < 4:
                self._buffers[name] = wide[name].to(moved.device)  # type: ignore[union-attr]
        return self


class Fourier(Wide):
    """Random Fourier features of the noise level: (B,) -> (B, C), sines, then cosines, of 2 pi f_i c_noise.

    The C/2 frequencies f ~ 16 N(0, 1) are drawn once and stored without the 2 pi.
    Source: Tancik et al. 2020; [SDE] app. H.
    """

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        require(channels > 0 and channels % 2 == 0, f"Fourier features: got {channels}; expected 2, 4, 6, ...")
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        """The features, in the dtype of c_noise."""
        angle = torch.outer(c_noise, 2 * math.pi * self.freqs.to(c_noise.dtype))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class NoiseEmbedding(nn.Module):
    """The vector that tells every block the noise level, the class and the augmentation.

        e   = features(c_noise) + W_label (sqrt(label_dim) label) + b_label + W_augment augment_label
        emb = silu( linear1( silu( linear0(e) ) ) )

    features are `positional_embedding` (DDPM++, the MLP), or the module `fourier` (NCSN++), with `channels` entries.
    sqrt(label_dim) gives a one-hot label unit mean square. Source: [SDE] app. H, [EDM] app. F.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        *,
        fourier: Fourier | None = None,
    ) -> None:
        super().__init__()
        require(channels >= 4 and channels % 2 == 0, f"embedding: got {channels} channels; expected 4, 6, 8, ...")
        self.channels = channels
        self.label_dim = label_dim
        self.augment_dim = augment_dim
        self.fourier = fourier
        self.label = Linear(label_dim, channels) if label_dim else None
        self.augment = Linear(augment_dim, channels, bias=False) if augment_dim else None
        self.linear0 = Linear(channels, emb_channels)
        self.linear1 = Linear(emb_channels, emb_channels)

    def forward(self, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """(1, emb_channels) if all that was given holds for the whole batch, else (B, emb_channels)."""
        c_noise = noise_levels(c_noise, self.linear0.weight)
        features = positional_embedding(c_noise, self.channels) if self.fourier is None else self.fourier(c_noise)
        e = features.to(self.linear0.weight)
        labels = labels_for(labels, self.label_dim, e)
        if self.label is not None and labels is not None:
            e = e + self.label(labels * math.sqrt(self.label_dim))
        e = add_augmentation(e, self.augment, augment_labels, self.augment_dim)
        return functional.silu(self.linear1(functional.silu(self.linear0(e))))


class LateLabelEmbedding(nn.Module):
    """The embedding of ADM and DiT, where the class comes last.

        e   = positional_embedding_exclusive(c_noise) + W_augment augment_label
        emb = silu( linear1( silu( linear0(e) ) ) + W_label label )

    No sqrt(label_dim): W_label is a table with one row a class, drawn from N(0, label_std^2).
    Source: Dhariwal and Nichol 2021; Peebles and Xie 2022; [EDM] app. F.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        *,
        init: Init = xavier,
        label_std: float = 1.0,
    ) -> None:
        super().__init__()
        require(channels >= 4 and channels % 2 == 0, f"embedding: got {channels} channels; expected 4, 6, 8, ...")
        self.channels = channels
        self.label_dim = label_dim
        self.augment_dim = augment_dim
        self.label = Linear(label_dim, emb_channels, bias=False, init=normal(label_std)) if label_dim else None
        self.augment = Linear(augment_dim, channels, bias=False, init=init) if augment_dim else None
        self.linear0 = Linear(channels, emb_channels, init=init)
        self.linear1 = Linear(emb_channels, emb_channels, init=init)

    def forward(self, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        """(1, emb_channels) if all that was given holds for the whole batch, else (B, emb_channels)."""
        c_noise = noise_levels(c_noise, self.linear0.weight)
        e = positional_embedding_exclusive(c_noise, self.channels).to(self.linear0.weight)
        e = add_augmentation(e, self.augment, augment_labels, self.augment_dim)
        emb = self.linear1(functional.silu(self.linear0(e)))
        labels = labels_for(labels, self.label_dim, e)
        if self.label is not None and labels is not None:
            emb = emb + self.label(labels)
        return functional.silu(emb)


def normal(std: float) -> Init:
    """Weights from N(0, std^2), zero bias."""

    def init(weight: Tensor, bias: Tensor | None) -> None:
        nn.init.normal_(weight, std=std)
        if bias is not None:
            nn.init.zeros_(bias)

    return init


def noise_levels(c_noise: Tensor, weight: Tensor) -> Tensor:
    """c_noise () or (B,) as (1,) or (B,), in the dtype in which sines of it are taken.

    Never half precision: c_noise of VP goes up to 999, where float16 is off by half a radian. Not float64 in a float32
    network either: the published weights were trained on the float32 sines.
    """
    return c_noise.reshape(-1).to(torch.promote_types(weight.dtype, torch.float32))


def labels_for(labels: Tensor | None, label_dim: int, e: Tensor) -> Tensor | None:
    """The labels (B, label_dim) like e, zeros (1, label_dim) when there are none; None for a network without classes.

    Raises ValueError for labels of another width.
    """
    if labels is not None:
        _check_labels("labels", labels, label_dim)
        return labels.to(e)
    return e.new_zeros(1, label_dim) if label_dim else None


def add_augmentation(e: Tensor, layer: nn.Module | None, given: Tensor | None, width: int) -> Tensor:
    """What augment labels (B, width) give, added to e; e when there are none. Raises ValueError for another width."""
    if given is None:
        return e
    _check_labels("augment_labels", given, width)
    return e if layer is None else e + layer(given.to(e))


def _check_labels(name: str, given: Tensor, width: int) -> None:
    if width == 0:
        raise ValueError(f"{name}: got a tensor {tuple(given.shape)}, but this network takes none; leave {name} out")
    if given.ndim != 2 or given.shape[1] != width:
        raise ValueError(f"{name}: got shape {tuple(given.shape)}; expected (batch, {width})")


def check_batch(x: Tensor, emb: Tensor) -> None:
    """Raise ValueError where noise levels or labels come in another number than the samples x (B, *)."""
    if emb.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"got {x.shape[0]} samples with {emb.shape[0]} noise levels or labels; expected one each")
