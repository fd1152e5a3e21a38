"""The plan: everything that samples depend on, as JSON data that every process that draws some of them must share."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..denoiser import Denoiser
from ..guidance import Guided
from ..identity import fingerprint, tensor_digest
from ..request import Request
from ..sampler import Sampler
from ..seeds import as_ranges
from ..tensors import widest_dtype

SHOWN = 40  # characters of a value in a message


def plan_of(
    request: Request, denoiser: Denoiser, sampler: Sampler, dtype: torch.dtype, batch_size: int
) -> dict[str, Any]:
    """The plan of a request. Raises TypeError for samplers and conditions that have no form in a file.

    Versions and the device are in it because the last bits depend on them: kernels sum in another order.
    """
    guided = isinstance(denoiser, Guided)
    guide = denoiser.reference if isinstance(denoiser, Guided) else None
    wide = widest_dtype(request.device) if dtype == torch.float64 else dtype
    plan = {
        "elucidiff": __version__,
        "torch": str(torch.__version__),
        "device": device_kind(request.device),
        "dtype": str(wide).removeprefix("torch."),
        "model": fingerprint(denoiser.denoiser if isinstance(denoiser, Guided) else denoiser),
        "guidance": denoiser.settings() if guided else None,  # type: ignore[operator]
        "guide": None if guide is None else fingerprint(guide),
        "sampler": sampler.to_dict(),
        "seeds": as_ranges(request.seeds or ()),
        "labels": "by seed" if request.labels is None else _digest_of(request.labels),
        "conditions": {name: _condition(name, value) for name, value in sorted(request.conditions.items())},
        "shape": list(request.shape),
        "samples a part": batch_size,
    }
    return dict(json.loads(json.dumps(plan)))  # as it comes back from a file


def plan_digest(plan: dict[str, Any]) -> str:
    """The SHA-256 of a plan, by which parts say which one they belong to."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The entries in which two plans differ, "seeds (0-63 there, 0-9 here)"; empty for equal ones."""
    theirs, ours = _flat(there), _flat(here)
    names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    return ", ".join(f"{n} ({_short(theirs.get(n))} there, {_short(ours.get(n))} here)" for n in names)


def device_kind(device: torch.device) -> str:
    """What computes, such as "cuda NVIDIA H100 80GB HBM3" or "cpu AVX2"."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def _digest_of(tensor: Tensor) -> str:
    return f"{'x'.join(str(n) for n in tensor.shape)} values, {tensor_digest(tensor)}"


def _condition(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return _digest_of(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{name}: got a {type(value).__name__}; samples that are shared between processes take conditions that can be "
        "compared: tensors, numbers, text"
    )


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"sampler.steps": 18, ...} of nested JSON data."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
