"""Between this package and others: their function forms and their models.

Names are imported where they are first used: most programs need one of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOME_OF = {"load_file": "files", "to_sigmas": "levels", "wrap": "wrapping"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_HOME_OF.get(name, name)}", __name__)
    value = getattr(module, name) if name in _HOME_OF else module
    globals()[name] = value
    return value
