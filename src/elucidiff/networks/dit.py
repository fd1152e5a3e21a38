"""DiT: a transformer over patches."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..component import require
from .embedding import LateLabelEmbedding, check_batch, normal
from .layers import Linear, attend, split_heads
from .network import Network, check_shape, run

FEATURES = 256  # sines and cosines of the noise level


class DiT(Network, kind="dit"):
    """A transformer over patches, with adaLN-zero, for samples (C, *size) in 1 to 3 dimensions and beyond.

    Patches of patch x patch pixels are tokens of `width` entries; the noise level and the class shift, scale and gate
    every block. Blocks start as the identity and F at zero. The size may differ between calls; every side is a
    multiple of `patch`. The defaults are small; the published sizes are presets (dit-s, dit-b, dit-l, dit-xl).
    Source: Peebles and Xie 2022, "Scalable Diffusion Models with Transformers".
    """

    formula: ClassVar[str] = "DiT"
    references: ClassVar[tuple[str, ...]] = ("dit",)

    width: int = 128  # entries of a token
    depth: int = 6  # blocks
    heads: int = 4
    patch: int = 2  # pixels a side
    mlp_ratio: int = 4  # hidden entries of a block's perceptron over the width

    def validate(self) -> None:
        """Raise ValueError where a size is out of its range."""
        super().validate()
        require(
            self.width > 0 and self.heads > 0 and self.width % self.heads == 0,
            f"width: got {self.width} with {self.heads} heads; expected a multiple of the heads",
        )
        require(self.depth > 0, f"depth: got {self.depth}; expected 1 or more")
        require(self.patch > 0, f"patch: got {self.patch}; expected 1 or more")
        require(self.mlp_ratio > 0, f"mlp_ratio: got {self.mlp_ratio}; expected 1 or more")

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new transformer. Raises ValueError for shapes without axes or with sides that patches do not fill."""
        check_shape(shape, label_dim)
        if len(shape) < 2:
            raise ValueError(f"shape: got {shape}; dit takes (channels, *size); use mlp instead")
        least = 2 * (len(shape) - 1)  # a sine and a cosine for each axis
        require(self.width >= least, f"width: got {self.width}; {len(shape) - 1} axes need at least {least}")
        _check_patches(shape[1:], self.patch)
        return Transformer(self, shape, label_dim)


class Transformer(nn.Module):
    """The module of `DiT`: x (B, C, *size), c_noise () or (B,) -> F (B, C, *size)."""

    def __init__(self, config: DiT, shape: tuple[int, ...], label_dim: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.patch, self.width = config.patch, config.width
        self.checkpointed = config.checkpoint_activations
        entries = shape[0] * config.patch ** (len(shape) - 1)
        self.embedding = LateLabelEmbedding(
            FEATURES, config.width, label_dim, config.augment_dim, init=normal(0.02), label_std=0.02
        )
        self.linear_in = Linear(entries, config.width)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.modulation = Linear(config.width, 2 * config.width, init=_zeros)
        self.linear_out = Linear(config.width, entries, init=_zeros)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F (B, C, *size). Raises ValueError for samples or labels that do not fit the network."""
        if x.ndim != len(self.shape) + 1 or x.shape[1] != self.shape[0]:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}; this network takes (batch, {self.shape[0]}, *size) with "
                f"{len(self.shape) - 1} axes"
            )
        _check_patches(tuple(x.shape[2:]), self.patch)
        emb = self.embedding(c_noise, labels, augment_labels)
        check_batch(x, emb)
        grid = [side // self.patch for side in x.shape[2:]]
        h = self.linear_in(to_patches(x, self.patch)) + positions(grid, self.width).to(x)
        for block in self.blocks:
            h = run(block, h, emb, checkpointed=self.checkpointed)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=-1)
        return from_patches(self.linear_out(_norm(h) * (1 + scale) + shift), x.shape[1], grid, self.patch)


class DiTBlock(nn.Module):
    """Attention and a perceptron over tokens h (B, tokens, width), both modulated by emb (1 or B, width).

        a1, b1, g1, a2, b2, g2 = W emb
        h = h + g1 attention( layernorm(h) (1 + b1) + a1 )
        h = h + g2 W2 dropout( gelu( W1 ( layernorm(h) (1 + b2) + a2 ) ) )

    W starts at zero (adaLN-zero): the block is then the identity.
    """

    def __init__(self, config: DiT) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        width, hidden = config.width, config.mlp_ratio * config.width
        self.modulation = Linear(width, 6 * width, init=_zeros)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """The block's output."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=-1)
        qkv = self.qkv(_norm(h) * (1 + scale1) + shift1).transpose(1, 2)
        a = attend(*split_heads(qkv, self.heads), h.transpose(1, 2)).transpose(1, 2)
        h = h + gate1 * self.proj(a)
        y = functional.gelu(self.linear1(_norm(h) * (1 + scale2) + shift2), approximate="tanh")
        return h + gate2 * self.linear2(functional.dropout(y, self.dropout, self.training))


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(B, C, *size) -> (B, tokens, C patch^axes): tokens row by row, each channel first, then pixels row by row."""
    axes = x.ndim - 2
    split = x.reshape(*x.shape[:2], *itertools.chain(*((side // patch, patch) for side in x.shape[2:])))
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    return split.permute(order).flatten(1 + axes).flatten(1, axes)


def from_patches(tokens: Tensor, channels: int, grid: list[int], patch: int) -> Tensor:
    """The inverse of `to_patches`, for a grid of so many patches along each axis."""
    axes = len(grid)
    split = tokens.reshape(-1, *grid, channels, *[patch] * axes)
    order = [0, 1 + axes, *itertools.chain(*((1 + i, 2 + axes + i) for i in range(axes)))]
    return split.permute(order).reshape(-1, channels, *(n * patch for n in grid))


def positions(grid: list[int], width: int) -> Tensor:
    """Where each token is, (tokens, width): for each axis sines, then cosines, of its index, zeros in the rest.

    n = width // (2 axes) frequencies w_i = 10000^(-i / n) an axis. Computed in float64, on the CPU.
    """
    n = width // (2 * len(grid))
    w = 10000.0 ** (-torch.arange(n, dtype=torch.float64, device="cpu") / n)
    indices = torch.meshgrid([torch.arange(k, dtype=torch.float64, device="cpu") for k in grid], indexing="ij")
    angles = [index.reshape(-1, 1) * w for index in indices]
    embedded = torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)
    return functional.pad(embedded, (0, width - embedded.shape[1]))


def _norm(h: Tensor) -> Tensor:
    return functional.layer_norm(h, h.shape[-1:], eps=1e-6)


def _check_patches(sides: tuple[int, ...], patch: int) -> None:
    if any(side % patch for side in sides):
        fit = " x ".join(str(math.ceil(side / patch) * patch) for side in sides)
        raise ValueError(
            f"image of {' x '.join(map(str, sides))}: sides must be multiples of patch = {patch}; pad it to {fit}, "
            "or use another patch"
        )


def _zeros(weight: Tensor, bias: Tensor | None) -> None:
    for tensor in (weight, bias):
        if tensor is not None:
            nn.init.zeros_(tensor)
