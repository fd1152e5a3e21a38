"""elucidiff: the design space of diffusion models (EDM, Karras et al. 2022) as a library.

    import elucidiff as ed

    denoiser = ed.load("runs/digits")
    result = ed.sample(denoiser, ed.EDM, seeds=range(16))

Names are imported where they are first used, so that `import elucidiff` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import (
        adapters,
        augment,
        conditioning,
        data,
        denoiser,
        design,
        errors,
        formulation,
        guidance,
        metrics,
        models,
        networks,
        objective,
        posterior,
        preconditioning,
        recipes,
        sampler,
        seeds,
        solvers,
        timesteps,
        training,
        tuning,
    )
    from .analysis import bits_per_dim, log_likelihood
    from .denoiser import (
        Denoiser,
        EmpiricalDenoiser,
        FixedBatch,
        GaussianDenoiser,
        GaussianMixtureDenoiser,
        Preconditioned,
    )
    from .design import EDM, IDDPM, VE, VP, Design, citation, compare_designs
    from .drive import Drive
    from .latents import edit, interpolate, invert
    from .models import load, save
    from .objective import Objective, loss
    from .publish import model_card, push
    from .result import Result, Trajectory
    from .sampler import Sampler, sample, sample_states
    from .training import TrainConfig, train
    from .tuning import steps_by_dynamic_programming, steps_by_equal_error

_HOMES = {
    "analysis": ("bits_per_dim", "log_likelihood"),
    "denoiser": (
        "Denoiser", "EmpiricalDenoiser", "FixedBatch", "GaussianDenoiser", "GaussianMixtureDenoiser", "Preconditioned",
    ),
    "design": ("EDM", "IDDPM", "VE", "VP", "Design", "citation", "compare_designs"),
    "drive": ("Drive",),
    "latents": ("edit", "interpolate", "invert"),
    "models": ("load", "save"),
    "objective": ("Objective", "loss"),
    "publish": ("model_card", "push"),
    "result": ("Result", "Trajectory"),
    "sampler": ("Sampler", "sample", "sample_states"),
    "training": ("TrainConfig", "train"),
    "tuning": ("steps_by_dynamic_programming", "steps_by_equal_error"),
}  # fmt: skip
# Where the names live; all other public names are modules.
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "EDM",
    "IDDPM",
    "VE",
    "VP",
    "Denoiser",
    "Design",
    "Drive",
    "EmpiricalDenoiser",
    "FixedBatch",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "Objective",
    "Preconditioned",
    "Result",
    "Sampler",
    "TrainConfig",
    "Trajectory",
    "__version__",
    "adapters",
    "augment",
    "bits_per_dim",
    "citation",
    "compare_designs",
    "conditioning",
    "data",
    "denoiser",
    "design",
    "edit",
    "errors",
    "formulation",
    "guidance",
    "interpolate",
    "invert",
    "load",
    "log_likelihood",
    "loss",
    "metrics",
    "model_card",
    "models",
    "networks",
    "objective",
    "posterior",
    "preconditioning",
    "push",
    "recipes",
    "sample",
    "sample_states",
    "sampler",
    "save",
    "seeds",
    "solvers",
    "steps_by_dynamic_programming",
    "steps_by_equal_error",
    "timesteps",
    "train",
    "training",
    "tuning",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    elif name in __all__:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'elucidiff' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
