"""Squares of pixels as channels: a network at a fraction of the resolution, and of the cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ..component import require


class Patched(nn.Module):
    """F(x) = unfold( inner( fold(x) ) ): x (B, C, H, W) becomes (B, C p^2, H/p, W/p) for the inner network and back.

    Pixel (i, j) of a square of channel c becomes channel c p^2 + i p + j (pixel shuffle, Shi et al. 2016). Nothing is
    lost: the noise of x stays white.
    """

    def __init__(self, inner: nn.Module, patch: int) -> None:
        super().__init__()
        self.inner, self.patch = inner, patch

    def forward(self, x: Tensor, c_noise: Tensor, **conditions: Any) -> Tensor:
        """F (B, C, H, W); conditions go to the inner network."""
        F = self.inner(functional.pixel_unshuffle(x, self.patch), c_noise, **conditions)
        return functional.pixel_shuffle(F, self.patch)


def check_patch(shape: tuple[int, ...], patch: int) -> None:
    """Raise ValueError unless samples of a shape are images whose sides are multiples of the patch."""
    require(
        len(shape) == 3 and shape[1] % patch == 0 and shape[2] % patch == 0,
        f"patch: got {patch} for samples of shape {shape}; expected images (C, H, W) with sides that it divides",
    )
