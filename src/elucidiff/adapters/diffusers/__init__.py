"""Models of the diffusers library as denoisers, and our samplers in its pipelines.

    denoiser = ed.adapters.diffusers.load("folder of a pipeline")
    pipe.scheduler = ed.adapters.diffusers.ElucidiffScheduler.from_config(pipe.scheduler.config, sampler=sampler)

The library itself is imported where it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .loading import encode, is_folder, load
from .saving import save
from .schedules import alpha_bar, preconditioning_of

if TYPE_CHECKING:
    from .scheduler import ElucidiffScheduler

__all__ = ["ElucidiffScheduler", "alpha_bar", "encode", "is_folder", "load", "preconditioning_of", "save"]


def __getattr__(name: str) -> Any:
    if name != "ElucidiffScheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .scheduler import ElucidiffScheduler

    return ElucidiffScheduler
