"""Checkpoints of which each process writes its own pieces, by torch.distributed.checkpoint, as safetensors.

Each file's header says where in the whole tensors its pieces belong, so that any number of processes reads them, one
too, and unsharded checkpoints are read likewise. Nothing is pickled (docs/decisions/0013-sharded-state.md).
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import FormatError
from .checkpoint import State, writing
from .ranks import Ranks


class OnDisk(Mapping[str, Tensor]):
    """The tensors of a checkpoint, read when they are asked for. Raises FormatError where they are none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            stored = self._reader().read_metadata().state_dict_metadata
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{folder}: not a checkpoint ({error})") from error
        self.stored: dict[str, Any] = dict(stored)

    def __getitem__(self, name: str) -> Tensor:
        return self.whole([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def whole(self, names: list[str] | None = None) -> dict[str, Tensor]:
        """Some tensors, or all, read by this process alone, on the CPU."""
        chosen = list(self.stored) if names is None else names
        found = {n: torch.empty(self.stored[n].size, dtype=self.stored[n].properties.dtype) for n in chosen}
        return self._read(found, alone=True)

    def into(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors, whole ones or pieces, by name; all processes at once. Raises FormatError where they differ."""
        for name, t in tensors.items():
            if name not in self.stored:
                raise FormatError(f"{self.folder}: {name} is missing")
            size = tuple(self.stored[name].size)
            if size != t.shape:
                raise FormatError(f"{self.folder}: {name} has shape {size}, not {tuple(t.shape)}")
        self._read(tensors, alone=False)

    def _read(self, tensors: dict[str, Tensor], *, alone: bool) -> dict[str, Tensor]:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # told where that is what one wants
                dcp.load(tensors, storage_reader=self._reader(), no_dist=alone)
        except (CheckpointException, SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise FormatError(f"{self.folder}: cannot be read ({error})") from error
        return tensors

    def _reader(self) -> dcp.HuggingFaceStorageReader:
        return dcp.HuggingFaceStorageReader(path=str(self.folder))


def write_together(run: Path, images: int, state: State, ranks: Ranks, device: str) -> None:
    """Write a checkpoint of the pieces of all ranks, which call it at once; the folder must be one that all see.

    The first rank makes the folder and completes it, see `checkpoint.writing`. Raises OSError on all ranks where one
    cannot write.
    """
    with writing(run, images, state) if ranks.first else nullcontext(Path()) as new:
        folder = Path(ranks.text_of_first(str(new.absolute()), device))
        if ranks.highest(not folder.is_dir(), device):  # torch would make one on each machine
            told = (
                f"{run}: not all processes see this folder; with parallel=sharded it must be on a disk that they share"
            )
            raise OSError(errno.ENOENT, told)
        _write(folder, state.tensors)


def _write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    writer = dcp.HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        failures = {rank: failure[0] for rank, failure in error.failures.items()}
        first = next((e for e in failures.values() if isinstance(e, OSError)), None)
        told = "; ".join(f"rank {rank}: {failure}" for rank, failure in failures.items())
        raise OSError(first.errno if first is not None else errno.EIO, told) from error
