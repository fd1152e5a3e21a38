"""How the numbers of a step are computed: precision, scaling of the loss, memory layout, compilation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..component import require
from ..denoiser import Preconditioned
from ..errors import unknown

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INITIAL_SCALE = 2.0**16


def check_precision(name: str) -> None:
    """Raise ValueError naming the precisions there are."""
    require(name in PRECISIONS, unknown("precision", name, PRECISIONS))


def network_precision(name: str, device: str) -> AbstractContextManager[Any]:
    """Within it a network multiplies in this precision; its weights, D, the loss and the averages stay float32."""
    if name == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, PRECISIONS[name])


def scaler_of(name: str, device: str) -> torch.amp.GradScaler:
    """Scales the loss, so that small gradients survive float16; does nothing in other precisions.

    A step whose gradients overflow is left out and the scale halved; it doubles after 2,000 good ones.
    """
    return torch.amp.GradScaler(torch.device(device).type, init_scale=INITIAL_SCALE, enabled=name == "float16")


def lay_out(model: Preconditioned, channels_last: bool) -> None:
    """Channels last, for images: the same numbers in the order in which convolutions on CPUs and GPUs read them."""
    if channels_last and model.shape is not None and len(model.shape) == 3:
        for p in model.parameters():
            p.data = laid_out(p.data, channels_last)


def laid_out(y: Tensor, channels_last: bool) -> Tensor:
    """A tensor, in the layout of `lay_out` where it has four axes."""
    return y.contiguous(memory_format=torch.channels_last) if channels_last and y.ndim == 4 else y


def gradient_norm(parameters: list[nn.Parameter], clip: float | None) -> Tensor:
    """The norm of all gradients; above `clip` they are scaled to it. () on their device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    scale_down(gradients, norm, clip)
    return norm


def scale_down(gradients: list[Tensor], norm: Tensor, clip: float | None) -> None:
    """Scale gradients, in place, to the norm `clip` where theirs is above it, and finite: else one would spoil all."""
    if clip is not None:
        torch._foreach_mul_(gradients, torch.where(norm.isfinite(), (clip / (norm + 1e-6)).clamp(max=1), 1.0))


def clean_gradients(parameters: list[nn.Parameter]) -> None:
    """NaN to 0 and infinities to +-1e5, in place, as the published training does (EDM paper, appendix F)."""
    for p in parameters:
        if p.grad is not None:
            p.grad.nan_to_num_(nan=0.0, posinf=1e5, neginf=-1e5)
