"""Raw networks F(x; c_noise): configurations (`Network`) and the modules they build."""

from __future__ import annotations

from .ddpmpp import DDPMPP
from .mlp import MLP, Perceptron
from .names import from_published
from .network import Network
from .sizes import for_shape
from .unet import UNet

__all__ = ["DDPMPP", "MLP", "Network", "Perceptron", "UNet", "for_shape", "from_published"]
