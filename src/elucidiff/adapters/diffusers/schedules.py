"""What a scheduler's config says about the network: which levels it was trained at and what it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...component import require
from ...errors import unknown
from ...formulation import Table
from ...preconditioning import EDM, X0, Epsilon, Flow, Preconditioning, V

Levels = Literal["rounded", "interpolated"]
_PREDICTIONS: dict[str, type[Epsilon] | type[V] | type[X0]] = {"epsilon": Epsilon, "v_prediction": V, "sample": X0}
_LEAST = 2.0**-24  # alpha_bar where a schedule of zero terminal signal-to-noise ratio ends; sigma is then 4096


def preconditioning_of(
    config: Mapping[str, Any],
    *,
    prediction: str | None = None,
    levels: Levels = "rounded",
    time_scale: float | None = None,
) -> Preconditioning:
    """The preconditioning that makes a denoiser of a network trained with this scheduler.

    Schedulers with betas: epsilon, v or x0 prediction at a `Table`; of FlowMatch: velocity, told time_scale t (1000 t
    when left out); EDMEuler and EDMDPMSolver: that of the EDM paper. `levels`: "rounded" evaluates at trained levels
    only, "interpolated" tells the network fractions of timesteps. `prediction` overrides the config's prediction_type.

    Raises ValueError for a scheduler or prediction type that has no conversion to D here.
    """
    require(levels in get_args(Levels), unknown("levels", levels, get_args(Levels)))
    kind = prediction or str(config.get("prediction_type", "epsilon"))
    family = family_of(config)
    if family == "flow" or kind == "flow_prediction":
        return Flow(time_scale=time_scale or float(config.get("num_train_timesteps", 1000)))
    if family == "edm":
        require(kind == "epsilon", f"EDM scheduler: prediction_type {kind!r} has no conversion here; expected epsilon")
        return EDM(sigma_data=float(config.get("sigma_data", 0.5)))
    if family == "unknown":
        raise ValueError(
            f"scheduler {config.get('_class_name', '(unnamed)')}: its config names no betas; expected a DDPM-like, "
            "FlowMatch or EDM scheduler. For any other network: ed.adapters.wrap(function, prediction, schedule)"
        )
    require(kind in _PREDICTIONS, unknown("prediction_type", kind, [*_PREDICTIONS, "flow_prediction"]))
    table = Table(tuple(alpha_bar(config).tolist()))
    return _PREDICTIONS[kind](schedule=table, time_scale=1.0, time_shift=-1.0, discrete=levels == "rounded")


def family_of(config: Mapping[str, Any]) -> Literal["betas", "flow", "edm", "unknown"]:
    """What kind of scheduler a config belongs to; that of an object does not name its class, so the entries decide."""
    name = str(config.get("_class_name", ""))
    if {"beta_schedule", "beta_start", "trained_betas"} & set(config):
        return "betas"
    if name.startswith("FlowMatch") or {"shift", "use_dynamic_shifting"} <= set(config):
        return "flow"
    return "edm" if name.startswith("EDM") or "sigma_data" in config else "unknown"


def alpha_bar(config: Mapping[str, Any]) -> Tensor:
    """The table alpha_bar_k = prod_{j <= k} (1 - beta_j), (K,) float64, of a scheduler's config.

    With K steps from beta_start b to beta_end e, u = k / (K - 1):

        linear             beta_k = b + u (e - b)
        scaled_linear      beta_k = (sqrt b + u (sqrt e - sqrt b))^2
        sigmoid            beta_k = b + (e - b) / (1 + exp(6 - 12 u))
        squaredcos_cap_v2  beta_k = min(1 - f((k + 1)/K) / f(k/K), 0.999), f(t) = cos^2(pi/2 (t + 0.008) / 1.008)

    or trained_betas as listed. With rescale_betas_zero_snr, sqrt(alpha_bar) is moved linearly so that the last entry
    would be 0 (Lin et al. 2024); it is 2^-24 here, the level 4096, or half the entry before where that is less.
    Raises ValueError for another beta_schedule.
    """
    betas = _betas(config)
    inside = bool(((betas > 0) & (betas < 1)).all()) and len(betas) >= 2
    require(inside, f"betas: got {len(betas)} in [{betas.min():.4g}, {betas.max():.4g}]; expected 2 or more in (0, 1)")
    table = (1 - betas).cumprod(0)
    if config.get("rescale_betas_zero_snr"):
        root = table.sqrt()
        table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        table[-1] = table[-2].div(2).clamp(max=_LEAST)
    return table


def _betas(config: Mapping[str, Any]) -> Tensor:
    if (listed := config.get("trained_betas")) is not None:
        return torch.as_tensor(listed, dtype=torch.float64).reshape(-1)
    K = int(config.get("num_train_timesteps", 1000))
    b, e = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    u = torch.linspace(0, 1, K, dtype=torch.float64)
    formulas: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: b + u * (e - b),
        "scaled_linear": lambda: (b**0.5 + u * (e**0.5 - b**0.5)) ** 2,
        "sigmoid": lambda: b + (e - b) * torch.sigmoid(12 * u - 6),
        "squaredcos_cap_v2": lambda: _cosine_betas(K),
    }
    name = str(config.get("beta_schedule", "linear"))
    require(name in formulas, unknown("beta_schedule", name, [*formulas, "trained_betas"]))
    return formulas[name]()


def _cosine_betas(K: int) -> Tensor:
    t = torch.arange(K + 1, dtype=torch.float64) / K
    f = (0.5 * math.pi * (t + 0.008) / 1.008).cos() ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def check_table(config: Mapping[str, Any], scheduler: Any) -> None:
    """Compare our table with that of a scheduler object, in float32. Raises ValueError where they differ."""
    theirs = getattr(scheduler, "alphas_cumprod", None)
    if theirs is None or str(config.get("prediction_type")) == "flow_prediction":
        return
    ours = alpha_bar(config)
    theirs = torch.as_tensor(theirs).double().cpu()
    good = ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    require(
        good,
        f"{type(scheduler).__name__}: its alphas_cumprod are not those of its config ({config.get('beta_schedule')}); "
        "pass a config with trained_betas",
    )
