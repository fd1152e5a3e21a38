"""A residual perceptron, for points, vectors, and every shape that is not an image."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from ..component import require
from .embedding import NoiseEmbedding, check_batch
from .layers import NEAR_ZERO, Linear
from .network import Network, check_shape, run


class MLP(Network, kind="mlp"):
    """A residual perceptron for samples of any shape, which it sees as vectors.

        h = W_in x
        h = h + W_out dropout( silu( W layernorm(h) + affine(emb) ) )        depth times
        F = W_F layernorm(h)

    emb is the embedding of DDPM++. F starts near zero.
    """

    formula: ClassVar[str] = "residual perceptron"

    width: int = 256  # entries of h, even
    depth: int = 4  # residual blocks

    def validate(self) -> None:
        """Raise ValueError where a size is out of its range."""
        super().validate()
        require(self.width >= 4 and self.width % 2 == 0, f"width: got {self.width}; expected 4, 6, 8, ...")
        require(self.depth > 0, f"depth: got {self.depth}; expected 1 or more")

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new perceptron. Raises ValueError for a shape without entries."""
        check_shape(shape, label_dim)
        embedding = NoiseEmbedding(self.width, self.width, label_dim, self.augment_dim)
        return Perceptron(
            shape,
            embedding,
            width=self.width,
            depth=self.depth,
            dropout=self.dropout,
            checkpointed=self.checkpoint_activations,
        )


class Perceptron(nn.Module):
    """The module of `MLP`: x (B, *shape), c_noise () or (B,) -> F (B, *shape)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        embedding: NoiseEmbedding,
        *,
        width: int,
        depth: int,
        dropout: float,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.checkpointed = checkpointed
        entries = math.prod(shape)
        self.embedding = embedding
        self.linear_in = Linear(entries, width)
        self.blocks = nn.ModuleList(PerceptronBlock(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.linear_out = Linear(width, entries, gain=NEAR_ZERO)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F. Raises ValueError for samples or labels that do not fit the network."""
        if tuple(x.shape[1:]) != self.shape:
            wanted = ", ".join(["batch", *map(str, self.shape)])
            raise ValueError(f"x: got shape {tuple(x.shape)}; this network takes ({wanted})")
        emb = self.embedding(c_noise, labels, augment_labels)
        check_batch(x, emb)
        h = self.linear_in(x.flatten(1))
        for block in self.blocks:
            h = run(block, h, emb, checkpointed=self.checkpointed)
        return self.linear_out(self.norm(h)).reshape(x.shape)


class PerceptronBlock(nn.Module):
    """h + W_out dropout( silu( W layernorm(h) + affine(emb) ) ): (B, width), emb (1 or B, width) -> (B, width)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.linear = Linear(width, width)
        self.affine = Linear(width, width)
        self.linear_out = Linear(width, width, gain=NEAR_ZERO)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """The block's output."""
        y = functional.silu(self.linear(self.norm(h)) + self.affine(emb))
        return h + self.linear_out(functional.dropout(y, self.dropout, self.training))
