"""Training a model that does not fit: weights, gradients, moments and averages in pieces, one on each process (FSDP2).

Of each tensor a process has some of its rows. Blocks of the network are put together when they compute, one after
another, and their gradients are summed into pieces at once. What is elementwise - Adam, averages - works on the pieces.
Source: Zhao et al. 2023, "PyTorch FSDP"; Rajbhandari et al. 2020, "ZeRO", stage 3.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from ..component import require
from ..denoiser import Preconditioned
from .config import TrainConfig
from .ema import EMA
from .numerics import scale_down
from .ranks import summed
from .weights import Weights

KINDS = ("cpu", "cuda")  # of devices


class ShardedWeights(Weights):
    """Weights of which every process has a piece.

    Numbers () and what belongs to a learned uncertainty, which is used outside of the network too, are whole on each.
    parameters: the pieces, as plain tensors, so that nothing on them needs the others.
    """

    sharded = True

    def placed(
        self, beside: list[nn.Parameter], uncertainty: nn.Module | None, config: TrainConfig
    ) -> list[nn.Parameter]:
        """Cut the model, block by block: a GPU never holds more than its pieces and one block."""
        device, network = torch.device(config.device), self.model.network
        _check(device)
        self.device = device
        whole = {p for p in self.model.parameters() if p.ndim == 0}
        whole |= set(uncertainty.parameters()) if uncertainty is not None else set()
        self.skeleton = _skeleton(self.model)
        self.mesh = init_device_mesh(device.type, (self.ranks.size,))
        for module in [*units(network), network]:
            module.register_forward_hook(_no_view)
            fsdp.fully_shard(module, mesh=self.mesh, ignored_params=whole)
        for module in network.modules():
            if isinstance(module, fsdp.FSDPModule):  # sums, not means; PREMUL_SUM, the default here, gloo has not
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
        for part in (self.model, *([uncertainty] if uncertainty is not None else [])):
            for t in itertools.chain(part.parameters(), part.buffers()):
                if not isinstance(t, DTensor):
                    t.data = t.data.to(device)
        self.owners: list[nn.Parameter] = [*self.model.parameters(), *beside]
        return [_piece(p) for p in self.owners]

    def average(self) -> EMA:
        """A new average, in pieces."""
        return ShardedEMA(self)

    def collect(self, parts: Iterable[object]) -> None:
        """Sum the gradients of the parts of a batch on all ranks, each as soon as it is there."""
        self.forget_gradients()
        for p in self.owners:
            p.grad = None
        for _ in parts:
            pass
        for p, piece in zip(self.owners, self.parameters, strict=True):
            if isinstance(p, DTensor):
                piece.data = p.to_local().detach()  # the storage may be another one since the first step
                piece.grad = None if p.grad is None else cast("DTensor", p.grad).to_local().detach()
                p.grad = None
        alike = [p for p in self.whole if p.grad is not None]
        if alike:
            total = summed([[cast("Tensor", p.grad) for p in alike]], self.ranks)
            for p, gradient in zip(alike, total, strict=True):
                p.grad = gradient

    @property
    def whole(self) -> list[nn.Parameter]:
        """The parameters that every process has whole."""
        return [p for p in self.owners if not isinstance(p, DTensor)]

    @torch.no_grad()
    def norm(self, clip: float | None) -> Tensor:
        """The norm of the gradients of all processes, what each has whole counted once."""
        pairs = [(p, g) for p, g in zip(self.owners, self.gradients(), strict=True) if g is not None]
        pieces = [g for p, g in pairs if isinstance(p, DTensor)]
        alike = [g for p, g in pairs if not isinstance(p, DTensor)]
        squares = self.ranks.gathered(_square(pieces, self.device))
        norm = (torch.stack(squares).sum() + _square(alike, self.device)).sqrt().float()
        scale_down([g for _, g in pairs], norm, clip)
        return norm

    def gradients(self) -> list[Tensor | None]:
        """Of all parameters."""
        return [p.grad for p in self.parameters]

    @torch.no_grad()
    def share_overflow(self) -> None:
        """Where a gradient of one rank is not finite, make those of all ranks so."""
        found = [g for g in self.gradients() if g is not None]
        if self.ranks.highest(not all(bool(g.isfinite().all()) for g in found), str(self.device)):
            for g in found:
                g.fill_(math.inf)

    def lowest(self, number: int) -> int:
        """The lowest number of the ranks."""
        return -self.ranks.highest(-number, str(self.device))

    def stored(self, index: int, t: Tensor) -> Tensor:
        """A piece as a part of the whole, of which it knows the shape."""
        p = self.owners[index]
        if not isinstance(p, DTensor):
            return t
        return DTensor.from_local(t, self.mesh, [Shard(0)], run_check=False, shape=p.shape, stride=p.stride())

    def together(self, index: int, t: Tensor) -> Tensor:
        """The whole tensor, like parameter `index`, of the pieces t of all ranks; all ask."""
        return self.ranks.joined(t) if isinstance(self.owners[index], DTensor) else t


class ShardedEMA(EMA):
    """An average in pieces; whole, on the first rank only, within `together`."""

    def __init__(self, weights: ShardedWeights) -> None:
        self.weights = weights
        self.indices = range(len(list(weights.model.parameters())))
        self.averages = [weights.parameters[i].detach().clone() for i in self.indices]
        self._whole: nn.Module | None = None

    @property
    def module(self) -> nn.Module:
        """The averaged model, where it computes. Raises RuntimeError outside of `together`."""
        return self.whole.to(self.weights.device)

    @property
    def whole(self) -> nn.Module:
        """The averaged model, in the memory of the CPU until it was asked for where it computes."""
        if self._whole is None:
            raise RuntimeError(
                "the average is in pieces on several processes; it is whole at snapshots on the first one, "
                "and in those steps for which a watcher asks by needs_model"
            )
        return self._whole

    @torch.no_grad()
    def update(self, beta: float) -> None:
        """Move towards the model's present weights."""
        torch._foreach_lerp_(self.averages, [self.weights.parameters[i].data for i in self.indices], 1 - beta)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within it the first rank has the whole average, put together tensor by tensor; all ranks enter it."""
        weights, found = self.weights, []
        for i, average in zip(self.indices, self.averages, strict=True):
            t = weights.together(i, average)
            if weights.ranks.first:
                found.append(t.cpu())
        try:
            self._whole = self._built(found) if weights.ranks.first else None
            yield
        finally:
            self._whole = None

    def _built(self, found: list[Tensor]) -> nn.Module:
        """A model of these weights, and of the buffers that the one in training has."""
        skeleton = self.weights.skeleton
        known: dict[int, Any] = {
            id(empty): nn.Parameter(t, requires_grad=False)
            for empty, t in zip(skeleton.parameters(), found, strict=True)
        }
        known |= {
            id(old): new.detach().cpu().clone()
            for old, new in zip(skeleton.buffers(), self.weights.model.buffers(), strict=True)
        }
        return copy.deepcopy(skeleton, known).eval()

    def state(self) -> dict[str, Tensor]:
        """The pieces, and buffers, by the network's names."""
        weights = self.weights
        present = weights.model.network.state_dict().items()
        found = {name: t.clone() for name, t in present if not isinstance(t, DTensor)}  # no file takes one tensor twice
        named = zip(self.indices, weights.names, self.averages, strict=False)
        return found | {name.removeprefix("network."): weights.stored(i, t) for i, name, t in named}


def units(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that are put together one at a time: the items of its lists, and of their items' lists.

    Of an item that has lists of its own, such as a level of a U-Net, the parts are those of it: the items, and what
    is beside them. All must be used by calling them, which is when they are put together.
    """
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in network.modules():
        for item in module if isinstance(module, nn.ModuleList) and module not in inside else ():
            has_lists = any(isinstance(child, nn.ModuleList) for child in item.children())
            parts = [c for c in item.children() if not isinstance(c, nn.ModuleList)] if has_lists else [item]
            found += parts
            inside.update(*(part.modules() for part in parts))
    return [unit for unit in found if any(p.ndim for p in unit.parameters())]


def _check(device: torch.device) -> None:
    require(device.type in KINDS, f"parallel: sharded works on {' and '.join(KINDS)}; got the device {device}")
    known = hasattr(getattr(fsdp, "FSDPModule", None), "set_force_sum_reduction_for_comms")
    require(known, f"parallel: sharded needs a later torch than {torch.__version__}, such as 2.13")


def _no_view(module: nn.Module, given: Any, output: Any) -> Any:
    """A copy of an output that is a view, of which FSDP2 warns: changed in place it would lose its backward hook."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _skeleton(model: Preconditioned) -> Preconditioned:
    """A copy whose parameters have a shape and no content, and whose buffers are its own."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, cast("dict[int, Any]", empty))


def _piece(p: nn.Parameter) -> nn.Parameter:
    """What this process has of a parameter, in the same memory."""
    return nn.Parameter(p.to_local().detach()) if isinstance(p, DTensor) else p


def _square(tensors: list[Tensor], device: torch.device) -> Tensor:
    """The sum of squares of all entries, (), float64."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(tensors)).double().square().sum()
