"""What a model computes with, as one number: by it stored results are recognised as its own."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .component import Value
from .denoiser import Denoiser


def fingerprint(denoiser: Denoiser) -> str:
    """SHA-256, in hexadecimal, of what a denoiser computes with: classes, settings and weights. 1 s for 1 to 2 GB.

    Where it lies, and what is noted about its training, does not enter. Raises TypeError for functions made on
    the spot (a lambda, a closure), whose content cannot be known: give such a model as a class with attributes.
    """
    digest = hashlib.sha256()
    for name, module in denoiser.named_modules():
        settings = {k: _plain(v, f"{type(module).__name__}.{k}") for k, v in vars(module).items() if _is_setting(k)}
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        digest.update(json.dumps([name, kind, settings], sort_keys=True).encode())
    for name, tensor in denoiser.state_dict(keep_vars=True).items():
        digest.update(f"{name} {tensor_digest(tensor)}".encode())
    return digest.hexdigest()


def _is_setting(name: str) -> bool:
    """Whether an attribute says how a module computes: not notes about its training, nor counters of its calls."""
    return not name.startswith("_") and name not in ("training", "info") and not name.endswith("_calls")


def _plain(value: Any, where: str) -> Any:
    """An attribute as JSON data: values by their content, anything else by its class."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Value):
        return [type(value).__qualname__, value.to_dict()]
    if isinstance(value, (list, tuple)):
        return [_plain(v, where) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, where) for k, v in value.items()}
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, types.FunctionType) and "<" in value.__qualname__:  # <lambda>, f.<locals>.g
        raise TypeError(
            f"{where} is a function made on the spot, by which a model cannot be recognised in files; "
            "write it as a Denoiser with attributes, or keep nothing in files"
        )
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and numbers, in hexadecimal."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
