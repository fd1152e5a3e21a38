"""The plan: everything that samples depend on, as JSON data that every process that draws some of them must share."""

from __future__ import annotations

import hashlib
import json
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..component import Value
from ..denoiser import Denoiser
from ..guidance import Guided
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


def fingerprint(denoiser: Denoiser) -> str:
    """The SHA-256 of a denoiser: its tensors, and the settings of its modules. 1 s for each 1 to 2 GB.

    Whole numbers among the settings are left out: counters of calls are among them, and sizes show in the tensors.
    """
    digest = hashlib.sha256()
    for name, module in denoiser.named_modules():
        digest.update(f"{name} {type(module).__qualname__}\n".encode())
        for key, value in sorted(vars(module).items()):
            if key.startswith("_") or key == "training":
                continue
            if isinstance(value, Tensor):
                _update(digest, key, value)
            elif (text := _setting(value)) is not None:
                digest.update(f"{key} {text}\n".encode())
    for name, tensor in chain(denoiser.named_parameters(), denoiser.named_buffers()):
        _update(digest, name, tensor)
    return digest.hexdigest()


def device_kind(device: torch.device) -> str:
    """What computes, such as "cuda NVIDIA H100 80GB HBM3" or "cpu AVX2"."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def _update(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _digest_of(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    _update(digest, "", tensor)
    return f"{'x'.join(str(n) for n in tensor.shape)} values, {digest.hexdigest()}"


def _setting(value: Any) -> str | None:
    """A setting as text that is the same in every process; None for what is no setting."""
    if isinstance(value, Value):
        try:
            return json.dumps(value.to_dict())
        except TypeError:  # made of Python functions, which differ by their address
            return type(value).__qualname__
    if isinstance(value, (bool, float, str)):
        return repr(value)
    if isinstance(value, tuple) and all(isinstance(v, (int, float, str)) for v in value):
        return repr(value)
    return getattr(value, "__qualname__", None)  # functions


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
