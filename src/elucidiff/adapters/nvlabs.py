"""The snapshots published with the EDM and EDM2 papers, as denoisers of ours. Their embedded source is not executed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import preconditioning
from ..denoiser import Preconditioned
from ..errors import FormatError, unknown
from ..foreign import Record, read
from ..foreign.published import PublishedModule, is_persistent, modules_in
from ..networks import Network, from_arguments, load_published
from ..preconditioning import Preconditioning
from .building import of_file

LICENSE = "CC BY-NC-SA 4.0 (weights published with the EDM papers)"
# Arguments of __init__ in their order, for those given by position; the network's own follow by name.
_FIRST = ("img_resolution", "img_channels", "label_dim", "use_fp16")
_POSITIONS = {
    "EDMPrecond": (*_FIRST, "sigma_min", "sigma_max", "sigma_data", "model_type"),
    "VPPrecond": (*_FIRST, "beta_d", "beta_min", "M", "epsilon_t", "model_type"),
    "VEPrecond": (*_FIRST, "sigma_min", "sigma_max", "model_type"),
    "iDDPMPrecond": (*_FIRST, "C_1", "C_2", "M", "model_type"),
    "Precond": (*_FIRST, "sigma_data", "logvar_channels"),
}
# More than any published network has: what is built must not depend on the word of a file alone.
_LARGEST = {
    "img_resolution": 16384,
    "img_channels": 1024,
    "label_dim": 1_000_000,
    "model_channels": 16384,
    "num_blocks": 64,
    "logvar_channels": 65536,
}


def load(path: str | Path, key: str | None = None) -> Preconditioned:
    """The denoiser of a snapshot: our own network, built from the class's name and its arguments.

    Recognised are EDMPrecond, VPPrecond, VEPrecond and iDDPMPrecond around SongUNet (DDPM++, NCSN++) or DhariwalUNet
    (ADM), and the Precond of EDM2. `key` names the module in the file, "ema" if left out. Weights are float32, on the
    CPU; images are in [-1, 1] (latents, for EDM2 at 512 pixels, as its encoder scales them).

    The licence is noted in info["license"], which `ed.save` keeps, and said in a warning. Raises FileNotFoundError, and
    FormatError for a file that is damaged, or that holds another class or tensors that do not fit it.
    """
    return from_value(read(path), path, key)


def from_value(value: Any, path: str | Path, key: str | None = None) -> Preconditioned:
    """The denoiser in what `foreign.read` gave, see `load`; `path` is for messages."""
    with of_file(path):
        denoiser = _denoiser(_chosen(modules_in(value), key))
    denoiser.info |= _encoder(value)
    warnings.warn(f"{path}: the weights published in this form are licensed {LICENSE}: no commercial use", stacklevel=3)
    return denoiser.eval().requires_grad_(False)


def is_snapshot(value: Any) -> bool:
    """Whether what `foreign.read` gave holds a module that this adapter recognises."""
    try:
        return any(module.class_name in _POSITIONS for module in modules_in(value).values())
    except FormatError:
        return False


def _chosen(found: Mapping[str, PublishedModule], key: str | None) -> PublishedModule:
    known = {k: m for k, m in found.items() if m.class_name in _POSITIONS}
    if key is None:
        key = "ema" if "ema" in known else next(iter(known), None)
    if key is not None and key in known:
        return known[key]
    held = ", ".join(f"{k or '(top level)'}: {m.class_name}" for k, m in found.items())
    raise FormatError(f"holds {held}; expected one of {', '.join(_POSITIONS)}" + (f" under {key!r}" if key else ""))


def _denoiser(module: PublishedModule) -> Preconditioned:
    arguments = module.arguments(*_POSITIONS[module.class_name])
    _check_sizes(arguments)
    network = from_arguments(*_architecture(module, arguments), doubled_output=module.class_name == "iDDPMPrecond")
    side = arguments["img_resolution"]
    shape, label_dim = (arguments["img_channels"], side, side), arguments.get("label_dim") or 0
    state = {name: tensor for name, tensor in module.state.items() if name != "u"}
    _check_fit(network, shape, label_dim, state)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and overwritten
        denoiser = Preconditioned(network, _preconditioning(module, arguments), shape=shape, label_dim=label_dim)
    load_published(denoiser.network, state)
    denoiser.info = {
        "license": LICENSE,
        "imported": {
            "from": "a published snapshot",
            "class": module.class_name,
            "arguments": {k: v for k, v in arguments.items() if _is_json(v)},
            "source_sha256": module.source_sha256,
        },
    }
    if isinstance(arguments.get("label_dropout"), (int, float)):  # guidance asks for it
        denoiser.info["training"] = {"config": {"label_dropout": arguments["label_dropout"]}}
    _bound(denoiser, arguments)
    return denoiser


def _check_sizes(arguments: Mapping[str, Any]) -> None:
    for name in ("img_resolution", "img_channels"):
        if name not in arguments:
            raise FormatError(f"lacks the argument {name}")
    for name, most in _LARGEST.items():
        value = arguments.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= most):
            raise FormatError(f"argument {name}: got {value!r}; expected an integer of at most {most:,}")
    multipliers = arguments.get("channel_mult") or []
    if len(multipliers) > 12 or any(type(m) is not int or not 0 < m <= 256 for m in multipliers):
        raise FormatError(f"argument channel_mult: got {multipliers!r}; expected up to 12 integers of at most 256")


def _architecture(module: PublishedModule, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The network's class, and the arguments that concern it."""
    if module.class_name == "Precond":
        return "EDM2", arguments
    inner = module.children.get("model")
    name = inner.class_name if inner is not None else str(arguments.get("model_type"))
    return name, arguments


def _check_fit(network: Network, shape: tuple[int, ...], label_dim: int, state: Mapping[str, Tensor]) -> None:
    """Raise FormatError unless the tensors fit, before anything of their announced size is made."""
    with torch.device("meta"):
        module = network.build(shape, label_dim)
    load_published(module, state)


def _preconditioning(module: PublishedModule, arguments: Mapping[str, Any]) -> Preconditioning:
    def given(**fields: str) -> dict[str, Any]:
        return {own: arguments[theirs] for own, theirs in fields.items() if arguments.get(theirs) is not None}

    if module.class_name == "VPPrecond":
        return preconditioning.VP(**given(beta_d="beta_d", beta_min="beta_min", M="M", eps_t="epsilon_t"))
    if module.class_name == "VEPrecond":
        return preconditioning.VE(**given(sigma_min="sigma_min", sigma_max="sigma_max"))
    if module.class_name == "iDDPMPrecond":
        table = _levels(module.state.get("u"))
        return preconditioning.IDDPM(**given(C1="C_1", C2="C_2", M="M"), table=table)
    if module.class_name in ("EDMPrecond", "Precond"):
        return preconditioning.EDM(**given(sigma_data="sigma_data"))
    raise FormatError(unknown("preconditioning", module.class_name, _POSITIONS))


def _levels(table: Tensor | None) -> tuple[float, ...]:
    """The stored levels, computed in float32: the smallest differ by 5e-4 from what the formula gives in float64."""
    if table is None:
        return ()
    if table.ndim != 1 or not 2 < len(table) <= 100_000:
        raise FormatError(f"has a table u of noise levels of shape {tuple(table.shape)}")
    return tuple(table.double().tolist())


def _bound(denoiser: Preconditioned, arguments: Mapping[str, Any]) -> None:
    """The levels that an EDM snapshot restricts itself to; the other preconditionings know theirs."""
    if isinstance(denoiser.preconditioning, preconditioning.EDM):
        denoiser.sigma_min = float(arguments.get("sigma_min") or denoiser.sigma_min)
        denoiser.sigma_max = float(arguments.get("sigma_max") or denoiser.sigma_max)


def _encoder(value: Any) -> dict[str, Any]:
    """What a snapshot of EDM2 says about the encoder of its images."""
    encoder = value.get("encoder") if isinstance(value, dict) else None
    if not isinstance(encoder, Record) or not is_persistent(encoder) or not isinstance(encoder.args[0], dict):
        return {}
    return {"encoder": str(encoder.args[0].get("class_name"))}


def _is_json(value: Any) -> bool:
    plain = value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and abs(value) < 1e300)
    return plain or (isinstance(value, (list, tuple)) and all(_is_json(v) for v in value))
