"""Samples of any shape on one sheet, a PNG: images side by side, slices of volumes, points and signals as plots."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .writing import contact_sheet, write_image

DOTS, PANELS = 256, 12  # points and signals that are enough for a look
SIDE, EDGE = 384, 8  # pixels: of a plot, and of the white around what it shows
READABLE = 32  # pixels: images below half of this height are enlarged
GREY, BLUE = "#c9ced4", "#0072B2"
COLUMNS = 4  # of signals


def write_sheet(path: Path, x: Tensor, beside: Tensor | None = None, columns: int | None = None) -> None:
    """Samples x (B, *) that are no images: points (B, D) as dots, signals (B, C, L) as curves, more as grey images.

    Of points the first two numbers are shown, of one number its distribution function; of signals the first channel,
    of volumes the middle slice. beside: data to show in grey under them, (B, *) of signals; the scale is theirs, else
    that of x.
    """
    x = x.detach().cpu().double().nan_to_num(nan=1.0)
    y = x if beside is None else beside.detach().cpu().double()
    if x.ndim >= 4:
        write_images(path, _scaled(x, y), columns)
        return
    shown = [(x, BLUE)] if beside is None else [(y, GREY), (x, BLUE)]
    if x.ndim == 2:
        _plot_points(path, shown, y)
    else:
        _plot_signals(path, shown, y, columns or COLUMNS)


def write_images(path: Path, x: Tensor, columns: int | None = None) -> None:
    """Images (B, C, *size, H, W) in [-1, 1]: small ones enlarged, the middle of what is no side of an image."""
    images = _images(x.nan_to_num(nan=1.0))
    factor = max(1, READABLE // images.shape[-2])
    write_image(path, contact_sheet(images.repeat_interleave(factor, -2).repeat_interleave(factor, -1), columns, 2))


def _scaled(x: Tensor, y: Tensor) -> Tensor:
    """The samples x, with the range of the data y mapped to [-1, 1]."""
    low, high = y.min(), y.max()
    return 2 * (x - low) / (high - low).clamp(min=1e-12) - 1


def _images(x: Tensor) -> Tensor:
    """(B, C, *size, H, W) as images (B, 1 or 3, H, W): the middle of what is no side of an image, one grey channel."""
    while x.ndim > 4:
        x = x[:, :, x.shape[2] // 2]
    return x if x.shape[1] in (1, 3) else x[:, :1]


def _plot_points(path: Path, shown: list[tuple[Tensor, str]], y: Tensor) -> None:
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    draw, radius, scale = ImageDraw.Draw(sheet), 2, _pairs(y)
    for points, colour in shown:
        for right, up in _scaled_axes(_pairs(points), scale).tolist():
            if max(abs(right), abs(up)) <= 1:
                a, b = SIDE / 2 * (1 + right), SIDE / 2 * (1 - up)
                draw.ellipse((a - radius, b - radius, a + radius, b + radius), fill=colour)
    sheet.save(path, format="PNG")


def _pairs(x: Tensor) -> Tensor:
    """(B, d) as points (B, 2); of d = 1 the number and the fraction of numbers below it."""
    if x.shape[1] > 1:
        return x[:, :2]
    return torch.stack([x[:, 0].sort().values, torch.linspace(0, 1, len(x), dtype=x.dtype)], 1)


def _scaled_axes(x: Tensor, y: Tensor) -> Tensor:
    """Each column of x with the middle 99 % of y's in [-0.8, 0.8]."""
    low, high = y.quantile(0.005, dim=0), y.quantile(0.995, dim=0)
    return 0.8 * (2 * (x - low) / (high - low).clamp(min=1e-12) - 1)


def _plot_signals(path: Path, shown: list[tuple[Tensor, str]], y: Tensor, columns: int) -> None:
    from PIL import Image, ImageDraw

    n, width, height = len(shown[-1][0]), SIDE // 2, SIDE // 4
    sheet = Image.new("RGB", (columns * width, -(-n // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for signals, colour in shown:
        for i, signal in enumerate(_scaled(signals, y)[:, 0]):
            left, top = i % columns * width + EDGE, i // columns * height + EDGE
            across = torch.linspace(0, width - 2 * EDGE, len(signal))
            down = (1 - signal.clamp(-1.2, 1.2) / 1.2) / 2 * (height - 2 * EDGE)
            draw.line([(left + a, top + b) for a, b in zip(across.tolist(), down.tolist(), strict=True)], fill=colour)
    sheet.save(path, format="PNG")
