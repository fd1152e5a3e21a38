"""Raw networks F(x; c_noise): configurations (`Network`) and the modules they build."""

from __future__ import annotations

from .adm import ADM
from .ddpmpp import DDPMPP
from .dit import DiT, Transformer
from .edm2 import EDM2, EDM2UNet, Uncertainty
from .from_diffusers import Diffusers, DiffusersModule
from .k_diffusion import KDiffusionUNet, KDiffusionV1
from .magnitude import normalize_weights
from .mlp import MLP, Perceptron
from .names import from_published, load_published, published_names
from .ncsnpp import NCSNPP
from .network import Network
from .published import from_arguments
from .sizes import PRESETS, for_shape, preset
from .unet import UNet

__all__ = [
    "ADM",
    "DDPMPP",
    "EDM2",
    "MLP",
    "NCSNPP",
    "PRESETS",
    "DiT",
    "Diffusers",
    "DiffusersModule",
    "EDM2UNet",
    "KDiffusionUNet",
    "KDiffusionV1",
    "Network",
    "Perceptron",
    "Transformer",
    "UNet",
    "Uncertainty",
    "for_shape",
    "from_arguments",
    "from_published",
    "load_published",
    "normalize_weights",
    "preset",
    "published_names",
]
