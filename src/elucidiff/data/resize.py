"""Cropping and resizing of images with 8 bits a channel, as the data sets of the papers were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..component import require
from ..errors import unknown
from .images import MAX_PIXELS, MAX_SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

CROPS = ("none", "center", "center-dhariwal")
FILTERS = ("box", "bilinear", "bicubic", "lanczos")
OTHER_NAMES = {"center-crop": "center", "center-crop-dhariwal": "center-dhariwal"}


@dataclass(frozen=True)
class Resize:
    """What becomes of an image (C, H, W) uint8: a crop, then the resolution (width, height) in pixels.

    crop:
    - "center": the largest centred part with the proportions of the resolution; without one, a square;
    - "center-dhariwal": ImageNet as Dhariwal and Nichol (2021, arXiv:2105.05233) prepare it. While the
      shorter side is at least twice the target, both sides are halved with the box filter; the shorter side
      is brought to the target with the bicubic one; then the centre is cut out. Squares only, no other filter;
    - "none": the whole image, distorted where its proportions are not those of the resolution.
    Left out, "center" with a resolution and "none" without.

    resample: "box", "bilinear", "bicubic" or "lanczos". All are widened when reducing, so nothing aliases;
    the box filter by whole factors is the mean of each block, a half rounded up. No gamma is undone.

    Raises ValueError for what cannot be done.
    """

    resolution: tuple[int, int] | None = None
    crop: str | None = None
    resample: str = "lanczos"

    def __post_init__(self) -> None:
        crop = ("center" if self.resolution else "none") if self.crop is None else self.crop
        object.__setattr__(self, "crop", OTHER_NAMES.get(crop, crop))
        require(self.crop in CROPS, unknown("crop", crop, CROPS))
        require(self.resample in FILTERS, unknown("filter", self.resample, FILTERS))
        if self.resolution is not None:
            width, height = self.resolution
            require(
                min(width, height) > 0 and max(width, height) <= MAX_SIDE and width * height <= MAX_PIXELS,
                f"resolution: got {width}x{height}; allowed are 1 to {MAX_SIDE:,} a side, {MAX_PIXELS:,} pixels in all",
            )
        if self.crop == "center-dhariwal":
            square = self.resolution is not None and self.resolution[0] == self.resolution[1]
            require(square, "crop: center-dhariwal needs a square resolution, e.g. 64x64; any other works with center")

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The image (C, H, W), cropped and resized; the same array where there is nothing to do."""
        if self.crop == "center-dhariwal" and self.resolution is not None:
            return _dhariwal(pixels, self.resolution[0])
        if self.crop == "center":
            pixels = center(pixels, self.resolution or (1, 1))
        return pixels if self.resolution is None else resized(pixels, self.resolution, self.resample)

    def __str__(self) -> str:
        """What is done, for people: "cropped (center), resized to 64x64 (lanczos)"."""
        if self.crop == "center-dhariwal" and self.resolution is not None:
            return f"resized and cropped to {self.resolution[0]}x{self.resolution[1]} (center-dhariwal)"
        steps = ["cropped (center)"] if self.crop == "center" else []
        if self.resolution is not None:
            steps.append(f"resized to {self.resolution[0]}x{self.resolution[1]} ({self.resample})")
        return ", ".join(steps) or "as they were"


def center(pixels: np.ndarray, proportions: tuple[int, int]) -> np.ndarray:
    """The largest centred part of (C, H, W) that is width : height; an odd margin is larger right and below."""
    (_, h, w), (width, height) = pixels.shape, proportions
    if w * height > h * width:
        w = max(1, round(h * width / height))
    else:
        h = max(1, round(w * height / width))
    return _cut(pixels, h, w)


def _cut(pixels: np.ndarray, h: int, w: int) -> np.ndarray:
    top, left = (pixels.shape[1] - h) // 2, (pixels.shape[2] - w) // 2
    return pixels[:, top : top + h, left : left + w]


def resized(pixels: np.ndarray, resolution: tuple[int, int], resample: str) -> np.ndarray:
    """The image (C, H, W) uint8 at (width, height), by one of FILTERS."""
    from PIL import Image

    (_, h, w), (width, height) = pixels.shape, resolution
    if (w, h) == resolution:
        return pixels
    image = _to_pillow(pixels)
    if resample == "box" and w % width == 0 and h % height == 0:
        # Rounded once. Pillow's resize rounds after each axis, which brightens a halved image by half a level.
        return _from_pillow(image.reduce((w // width, h // height)))
    return _from_pillow(image.resize(resolution, Image.Resampling[resample.upper()]))


def _dhariwal(pixels: np.ndarray, side: int) -> np.ndarray:
    """The crop of Dhariwal and Nichol, with the roundings of the sets that published scores refer to."""
    from PIL import Image

    image = _to_pillow(pixels)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _cut(_from_pillow(image), side, side)


def _to_pillow(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def _from_pillow(image: Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
