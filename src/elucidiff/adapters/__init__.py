"""Between this package and others: their function forms and, later, their models."""

from . import k_diffusion

__all__ = ["k_diffusion"]
