"""Small tensor helpers that every floor shares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def as_float64(value: Tensor | float) -> Tensor:
    """A number, list or integer tensor as a float64 tensor; a floating tensor unchanged."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    return torch.as_tensor(value, dtype=torch.float64)


def accepts_numbers(method: Callable[[Any, Tensor], Any]) -> Callable[[Any, Any], Any]:
    """Let a formula written for tensors take plain numbers too (they become float64 tensors)."""

    @functools.wraps(method)
    def wrapped(self: Any, value: Tensor | float) -> Any:
        return method(self, as_float64(value))

    return wrapped


def derivative(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The derivative of an elementwise function at a tensor, also within no_grad and inference mode.

    By reverse mode: the first use of forward mode (torch.func.jvp) costs a second of imports and a deprecation warning.
    """
    with torch.inference_mode(False), torch.enable_grad():
        value = value.clone().detach().requires_grad_()
        result = function(value)
        if not result.requires_grad:  # a constant
            return torch.zeros_like(value, requires_grad=False)
        return torch.autograd.grad(result.sum(), value)[0]


def like(value: Tensor | float, x: Tensor) -> Tensor | float:
    """A per-sample value (B,) shaped to multiply x (B, *); a number or a 0-dim tensor as it is, on any device."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def widest_dtype(device: torch.device | str) -> torch.dtype:
    """float64, or float32 where the device has no float64 (mps)."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def here(t: Tensor) -> Tensor:
    """What this process has of a tensor that several share (a DTensor), in the same memory; others as they are."""
    return t.to_local() if hasattr(t, "to_local") else t
