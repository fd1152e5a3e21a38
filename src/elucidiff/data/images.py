"""Pixels: the range the network sees, and decoding PNG, JPEG and WebP so that nothing is read wrongly."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import FormatError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64 * 2**20
MAX_SIDE = 16_384
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_IMAGES = (".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".ppm", ".pgm")
EXIF_ORIENTATION = 0x0112  # of its values 5 to 8 turn by 90 degrees
WITHOUT_ALPHA = {"RGBA": "RGB", "LA": "L", "PA": "RGB"}


def from_uint8(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Levels 0 .. 255 as the network sees them: x / 127.5 - 1, in [-1, 1]."""
    return pixels.to(dtype).div(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] as levels 0 .. 255: clip(127.5 x + 128, 0, 255), truncated.

    The inverse of `from_uint8` for all 256 levels. Raises ValueError for NaN or infinity: such
    an image never becomes a file.
    """
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the images hold NaN or infinite values; they cannot be written as pixels")
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    return (127.5 * wide + 128).clamp(0, 255).to(torch.uint8)


def decode(content: bytes, where: str) -> np.ndarray:
    """A PNG, JPEG or WebP file as uint8 (C, H, W), C = 1 for grey and 3 for colour.

    Palettes become RGB, a fully opaque alpha channel is dropped, EXIF orientation is applied.
    Raises FormatError, naming the file, for what cannot become 8-bit grey or RGB without loss:
    transparency, 16 bits a channel, CMYK, animations, and anything damaged.
    """
    try:
        return _decode(content, where)
    except FormatError:
        raise
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, KeyError... on damaged files
        raise FormatError(f"{where}: damaged image ({type(error).__name__}: {error})") from error


def header(content: bytes, where: str) -> tuple[int, int, int]:
    """(C, H, W) as `decode` would give them, from the header alone: 0.05 ms. Damage further on goes unnoticed."""
    from PIL import Image

    try:
        kind = _kind(content, where)
        with Image.open(io.BytesIO(content), formats=(kind,)) as image:
            _check_size(image.width, image.height, where)
            turned = "exif" in image.info and image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
            channels = 1 if image.mode in ("1", "L", "LA") else 3
            return (channels, image.width, image.height) if turned else (channels, image.height, image.width)
    except FormatError:
        raise
    except Exception as error:  # as in `decode`
        raise FormatError(f"{where}: damaged image ({type(error).__name__}: {error})") from error


def _decode(content: bytes, where: str) -> np.ndarray:
    from PIL import Image, ImageOps

    kind = _kind(content, where)
    with Image.open(io.BytesIO(content), formats=(kind,)) as image:
        _check_size(image.width, image.height, where)
        if kind != "JPEG" and getattr(image, "n_frames", 1) > 1:  # phones append previews to a JPEG
            raise FormatError(f"{where}: an animation; extract its frames first")
        plain = _plain(ImageOps.exif_transpose(image) if "exif" in image.info else image, where)
        pixels = np.asarray(plain)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _kind(content: bytes, where: str) -> str:
    """The format by its first bytes. PNG's own header is read here, since Pillow cuts 16-bit colour to 8 silently."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        if len(content) < 33 or content[12:16] != b"IHDR":
            raise FormatError(f"{where}: damaged image (PNG header)")
        width, height, bits = struct.unpack(">IIB", content[16:25])
        _check_size(width, height, where)
        if bits > 8:
            raise FormatError(f"{where}: {bits} bits a channel; convert it to 8 bits, or give a float32 .npy")
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    raise FormatError(f"{where}: not a PNG, JPEG or WebP image")


def _check_size(width: int, height: int, where: str) -> None:
    if width < 1 or height < 1 or max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise FormatError(
            f"{where}: {width}x{height} pixels; at most {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all are read"
        )


def _plain(image: Image, where: str) -> Image:
    """The image in mode L or RGB, refused where that would lose something."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode in ("L", "RGB", "P", "PA", "RGBA", "LA"):
        return _opaque(image, where)
    raise FormatError(f"{where}: pixel format {image.mode}; convert it to 8-bit grey or RGB")


def _opaque(image: Image, where: str) -> Image:
    with_alpha = image if image.mode in ("RGBA", "LA") else image.convert("LA" if image.mode == "L" else "RGBA")
    lowest, _ = with_alpha.getchannel("A").getextrema()
    if lowest != 255:
        raise FormatError(f"{where}: has transparent pixels; place it on a background (convert it to RGB) first")
    return with_alpha.convert(WITHOUT_ALPHA[with_alpha.mode])
