"""A denoiser from a configuration and tensors of others, made only when the tensors fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Preconditioned
from ..errors import FormatError
from ..foreign import clip
from ..networks import Network
from ..preconditioning import Preconditioning


@contextmanager
def of_file(path: str | Path) -> Iterator[None]:
    """Within the block every error is the file's fault, and becomes a FormatError of one line that names it."""
    try:
        yield
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: makes no network: {clip(str(error), 300)}") from error


def check_not_empty(state: Mapping[str, Tensor]) -> None:
    """Raise FormatError for a tensor without numbers: it costs nothing to announce one with a trillion rows."""
    for name, tensor in state.items():
        if not tensor.numel():
            raise FormatError(f"the tensor {clip(name)} of shape {tuple(tensor.shape)} is empty")


def denoiser_of(
    network: Network,
    preconditioning: Preconditioning,
    shape: tuple[int, ...],
    label_dim: int,
    state: Mapping[str, Tensor],
) -> Preconditioned:
    """A network with the tensors of a state dict (our names), in float32, on the CPU, for evaluation.

    Raises FormatError naming the tensors that are missing, left over or of another shape, before anything of
    the size that a file announces is made.
    """
    with torch.device("meta"):
        wanted = network.build(shape, label_dim).state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} has no place" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise FormatError(f"the tensors do not fit the network: {'; '.join(problems[:3])}{more}")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and overwritten
        denoiser = Preconditioned(network, preconditioning, shape=shape, label_dim=label_dim)
    denoiser.network.load_state_dict(dict(state))
    return denoiser.eval().requires_grad_(False)


def multipliers_of(widths: Iterable[int], channels: int) -> tuple[int, ...]:
    """The widths of the levels over C. Raises FormatError unless they are multiples."""
    widths = tuple(widths)
    if any(w % channels for w in widths):
        raise FormatError(f"levels of {widths} channels are no multiples of the first, {channels}; not supported")
    return tuple(w // channels for w in widths)


def width(state: Mapping[str, Tensor], name: str, axis: int = 0) -> int:
    """The size of a tensor along an axis. Raises FormatError when it is not there."""
    if name not in state or state[name].ndim <= axis:
        raise FormatError(f"the tensor {name} is missing")
    return state[name].shape[axis]


def stacked_qkv(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows (C, *) of q, k and v in our order: channel first, then (q, k, v): (3 C, *)."""
    return torch.stack([q, k, v], dim=1).flatten(0, 1)


def renamed(part: Mapping[str, Tensor], names: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    """Tensors of one block under our names; `names` maps modules. Raises FormatError for another name."""
    out: dict[str, Tensor] = {}
    for name, tensor in part.items():
        module, _, kind = name.rpartition(".")
        if module not in names or kind not in ("weight", "bias"):
            raise FormatError(f"the tensor {name} has no place in {prefix}")
        out[f"{prefix}.{names[module]}.{kind}"] = tensor
    return out


def provenance(source: str, **facts: Any) -> dict[str, Any]:
    """What model.json says about where weights come from."""
    return {"imported": {"from": source, **facts}}
