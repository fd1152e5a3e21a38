"""The role: a network's configuration is a value, from which its module is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..component import Component, require
from ..errors import unknown

if TYPE_CHECKING:
    from typing_extensions import Self


class Network(Component):
    """A raw network F(x; c_noise) of Eq. 7, as a frozen configuration that fits in a JSON file.

    All modules that `build` makes are called alike:

        F = module(x, c_noise, labels=None, augment_labels=None)

    x               (B, *shape) in the module's dtype
    c_noise         () or (1,) for the whole batch, which is embedded once, or (B,); float32 or float64
    labels          (B, label_dim) one-hot or soft, or None for all zeros
    augment_labels  (B, augment_dim), or None to leave the term out
    F               (B, *shape)

    A module with weights that training has to normalise has a method normalize_weights(), to be called
    once a step, before the loss; none changes its weights in forward. Initial weights and dropout
    masks come from torch's own generators: seed them around the call.
    """

    role: ClassVar[str] = "network"

    dropout: float = 0.0  # probability, in training mode only
    augment_dim: int = 0  # entries of the augment labels; 0: the network takes none
    # Computes the inside of each block again in the backward pass instead of storing it: a third more time, a
    # fraction of the memory, equal numbers.
    checkpoint_activations: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The network that `to_dict` wrote; "kind" may also name a preset, whose fields the others replace.

        {"kind": "edm2-xs", "dropout": 0.1} is the published size with another dropout.
        """
        from .sizes import PRESETS  # the table of presets needs the classes, which need this one

        if isinstance(data, Mapping) and isinstance(kind := data.get("kind"), str):
            if kind in PRESETS:
                data = {**PRESETS[kind].to_dict(), **data, "kind": PRESETS[kind].kind}
            elif kind not in cls.kinds():
                raise ValueError(unknown("network", kind, [*cls.kinds(), *PRESETS]))
        return super().from_dict(data)

    def validate(self) -> None:
        """Raise ValueError where a field that all networks have is out of its range."""
        require(0 <= self.dropout < 1, f"dropout: got {self.dropout}; expected a probability in [0, 1)")
        require(self.augment_dim >= 0, f"augment_dim: got {self.augment_dim}; expected 0 or more")

    def build(self, shape: tuple[int, ...], label_dim: int) -> nn.Module:
        """A new module for samples of a shape and label_dim classes (0: unconditional)."""
        raise NotImplementedError


def check_shape(shape: tuple[int, ...], label_dim: int = 0) -> None:
    """Raise ValueError unless a shape of samples and a number of classes make sense."""
    require(len(shape) > 0 and min(shape) > 0, f"shape: got {shape}; expected positive sizes, without the batch")
    require(label_dim >= 0, f"label_dim: got {label_dim}; expected 0 (unconditional) or the number of classes")


def run(block: Callable[..., Tensor], *inputs: Tensor, checkpointed: bool) -> Tensor:
    """block(*inputs); checkpointed: only the inputs are kept, and the backward pass runs the block again.

    Dropout masks are drawn again from the same state of torch's generators, so that gradients are equal.
    """
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
