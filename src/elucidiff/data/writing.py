"""Images in [-1, 1] as PNG files and as contact sheets."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from .images import to_uint8


def write_image(path: Path, x: Tensor) -> None:
    """Write one image (1 or 3, H, W) in [-1, 1] as a PNG."""
    from PIL import Image

    pixels = to_uint8(x.detach().cpu()).permute(1, 2, 0)
    Image.fromarray((pixels[..., 0] if pixels.shape[2] == 1 else pixels).numpy()).save(path, format="PNG")


def contact_sheet(x: Tensor, columns: int | None = None, gap: int = 1) -> Tensor:
    """Images (B, C, H, W) on one sheet (C, H', W') with white gaps; a near-square grid unless columns are given."""
    n, channels, height, width = x.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap, dtype=x.dtype)
    for i, image in enumerate(x.detach().cpu()):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
