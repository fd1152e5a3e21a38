"""Between this package and others: their function forms and their models."""

from . import diffusers, guided_diffusion, k_diffusion, nvlabs, score_sde
from .files import load_file
from .levels import to_sigmas
from .wrapping import wrap

__all__ = [
    "diffusers",
    "guided_diffusion",
    "k_diffusion",
    "load_file",
    "nvlabs",
    "score_sde",
    "to_sigmas",
    "wrap",
]
