"""Several processes that train one model: who this one is, and what they tell each other."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import torch
import torch.distributed as dist
from torch import Tensor

PIECES = "torch.distributed.tensor"  # imported where weights are sharded
PATIENCE = timedelta(minutes=10)  # for a rank that is slow; one that died is noticed at once


@dataclass(frozen=True)
class Ranks:
    """One process among `size` that train together; alone by default, and then no process group is needed."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def gathered(self, t: Tensor) -> list[Tensor]:
        """The tensor of each rank, of one shape, in order."""
        if self.size == 1:
            return [t]
        found = [torch.empty_like(t) for _ in range(self.size)]
        dist.all_gather(found, t.contiguous())
        return found

    def joined(self, t: Tensor) -> Tensor:
        """The rows of all ranks, in order; their number may differ."""
        if self.size == 1:
            return t
        counts = [int(n) for n in self.gathered(torch.tensor([len(t)], device=t.device))]
        padded = torch.cat([t, t.new_zeros(max(counts) - len(t), *t.shape[1:])])
        return torch.cat([rows[:n] for rows, n in zip(self.gathered(padded), counts, strict=True)])

    def text_of_first(self, text: str, device: str = "cpu") -> str:
        """The text that the first rank has, such as a path, of at most 4,096 bytes."""
        raw = text.encode()[:4096].ljust(4096, b"\0")
        found = self.gathered(torch.tensor(list(raw), dtype=torch.uint8, device=device))[0]
        return bytes(found.tolist()).rstrip(b"\0").decode()

    def of_first(self, value: int, device: str = "cpu") -> int:
        """The number that the first rank has."""
        return int(self.gathered(torch.tensor([value], device=device))[0])

    def highest(self, value: int, device: str = "cpu") -> int:
        """The highest number of all."""
        return max(int(t) for t in self.gathered(torch.tensor([value], device=device)))

    def share(self, count: int) -> range:
        """Which of `count` parts are this one's; count is a multiple of size."""
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)


ALONE = Ranks()


@contextmanager
def together(device: str) -> Iterator[tuple[Ranks, str]]:
    """Join the processes that torchrun started, and leave them at the end; this one's rank, and its device.

    Alone where the environment names no others. nccl between GPUs, each rank with one of its own, else gloo. Within a
    process group that exists already that one is used. At the end the group's threads are gone: one that outlives the
    interpreter aborts the process (torch issue 190489).
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size()), _own(device)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(), device
        return
    device = _own(device)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    import_module("torch.distributed.nn.functional")  # imported later, as optimizers do, it would keep the group alive
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore(_attempt(), store), rank=rank, world_size=size, timeout=PATIENCE
    )
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    except BaseException as error:
        if PIECES in sys.modules:
            traceback.clear_frames(error.__traceback__)  # weights in their variables would keep the group alive
        raise
    finally:
        if PIECES in sys.modules:
            _forget_pieces()
        dist.destroy_process_group()


def _forget_pieces() -> None:
    """Empty the caches of torch in which sharded tensors leave the group that they belong to, and with it its threads.

    These functions are not public: where another torch has others, the caches stay.
    """
    caches = {"debug": "_clear_sharding_prop_cache", "_redistribute": "clear_redistribute_planner_cache"}
    gc.collect()
    for module, clear in caches.items():
        with suppress(ImportError, AttributeError):
            getattr(import_module(f"{PIECES}.{module}"), clear)()
    gc.collect()


def _attempt() -> str:
    """A name for this start of the processes of one machine: torchrun starts them again with the same store.

    There ranks that were restarted found the addresses of dead ones (torch 2.13), and could not connect or waited for
    ever. Between machines the counts may differ; there a rendezvous makes a new store.
    """
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}" if one_machine else "ranks"


def _own(device: str) -> str:
    """cuda:LOCAL_RANK for cuda; others as they are."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


class TreeSum:
    """The sum of lists of tensors, by pairs, then pairs of pairs: the same additions however processes share them.

    For a number of terms that is a power of two, and a share of each process that is one too.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[int, list[Tensor]]] = []  # (terms in it, their sum), the largest first

    def add(self, term: Sequence[Tensor], count: int = 1) -> None:
        """Add one more; `count`: of how many terms it is the sum already. The tensors become the tree's own."""
        own = list(term)
        while self.waiting and self.waiting[-1][0] == count:
            _, before = self.waiting.pop()
            own, count = _added(before, own), 2 * count
        self.waiting.append((count, own))

    def total(self) -> list[Tensor]:
        """The sum of all that was added."""
        _, found = self.waiting.pop()
        while self.waiting:
            _, before = self.waiting.pop()
            found = _added(before, found)
        return found


def _added(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    return [*torch._foreach_add(a, b)]


def summed(parts: Iterable[Sequence[Tensor]], ranks: Ranks) -> list[Tensor]:
    """The sum of the parts of all ranks, in the order of `TreeSum`; the same bits on each.

    Each part is asked for when the one before was added: of n parts log2(n) + 1 are in memory at most.
    """
    own = TreeSum()
    for part in parts:
        own.add(part)
    mine = own.total()
    if ranks.size == 1:
        return mine
    flat = torch.cat([t.flatten() for t in mine])
    whole = TreeSum()
    for other in ranks.gathered(flat):
        whole.add([other])
    (total,) = whole.total()
    for piece, t in zip(total.split([t.numel() for t in mine]), mine, strict=True):
        t.copy_(piece.view_as(t))  # in the memory layout of one process, which decides the order within norms
    return mine
