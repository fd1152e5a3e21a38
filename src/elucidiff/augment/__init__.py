"""Non-leaky augmentation: transforms of the training data whose parameters the network is told."""

from __future__ import annotations

from .colour import Brightness, Contrast, Hue, LumaFlip, Saturation
from .geometric import Anisotropic, Geometric, Rotation, Scale, Translation
from .pipeline import EDM, FULL, Augment, for_shape, named
from .pixels import Rotate90, Shift, XFlip, YFlip, ZFlip
from .resample import warp
from .transform import Transform

__all__ = [
    "EDM",
    "FULL",
    "Anisotropic",
    "Augment",
    "Brightness",
    "Contrast",
    "Geometric",
    "Hue",
    "LumaFlip",
    "Rotate90",
    "Rotation",
    "Saturation",
    "Scale",
    "Shift",
    "Transform",
    "Translation",
    "XFlip",
    "YFlip",
    "ZFlip",
    "for_shape",
    "named",
    "warp",
]
