"""A long evaluation in chunks: what was computed of each, in files that any number of processes fill, or in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import FormatError
from ..files import refuse_existing, write_atomically
from .store import key_of

PLAN = "plan.json"
MANY = 3  # differences that are told


class Work:
    """Tensors of numbered chunks. With a path they are files, written whole or not at all, beside the plan they follow.

    Whoever comes later with the same plan finds them; with another, ValueError says what differs. A folder with
    anything else in it raises FileExistsError, a damaged file FormatError.
    """

    def __init__(self, path: str | Path | None, plan: Mapping[str, Any], chunks: int) -> None:
        self.path, self.chunks = None if path is None else Path(path), chunks
        self._key = key_of(plan)
        self._memory: dict[int, dict[str, Tensor]] = {}
        if self.path is not None:
            _agree(self.path, dict(plan) | {"chunks": chunks})

    def file(self, chunk: int) -> Path:
        """Where a chunk lies. Raises ValueError for work in memory."""
        if self.path is None:
            raise ValueError("this work is in memory and has no files")
        return self.path / f"chunk-{chunk:05d}.safetensors"

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._memory if self.path is None else self.file(chunk).is_file()

    def missing(self) -> list[int]:
        """The chunks that are not there."""
        return [chunk for chunk in range(self.chunks) if chunk not in self]

    def put(self, chunk: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a chunk."""
        kept = {name: _narrowest(t.detach().cpu()).contiguous() for name, t in tensors.items()}
        if self.path is None:
            self._memory[chunk] = kept
        else:
            write_atomically(self.file(chunk), save(kept, metadata={"plan": self._key}))

    def get(self, chunk: int) -> dict[str, Tensor]:
        """The tensors of a chunk that is there; floating ones in the type in which all of them were the same."""
        return self._memory[chunk] if self.path is None else self._read(self.file(chunk))

    def joined(self, name: str) -> Tensor | None:
        """One of the tensors of all chunks, one after the other; None where chunks have none of that name."""
        parts = [chunk[name] for chunk in self if name in chunk]
        if not parts:
            return None
        wide = torch.float64 if any(p.dtype == torch.float64 for p in parts) else parts[0].dtype
        return torch.cat([p.to(wide) for p in parts])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self.get(chunk) for chunk in range(self.chunks))

    def _read(self, file: Path) -> dict[str, Tensor]:
        try:
            with safe_open(file, framework="pt") as opened:
                plan = (opened.metadata() or {}).get("plan")
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{file}: damaged ({error}); remove it, and it is made again") from error
        if plan != self._key:
            raise FormatError(f"{file}: belongs to another plan than {file.parent / PLAN}; remove it")
        return found


def _narrowest(t: Tensor) -> Tensor:
    """float64 as float32 where that loses nothing: the features of a network in float32, at half the size."""
    return t.float() if t.dtype == torch.float64 and torch.equal(t.float().double(), t) else t


def _agree(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan to a new folder; compare with the one that is there."""
    file, mine = folder / PLAN, json.loads(json.dumps(plan))
    if not file.is_file():
        begun = folder.is_dir() and all(PLAN in p.name for p in folder.iterdir())  # by another process, just now
        if not begun:
            refuse_existing(folder)
        write_atomically(file, (json.dumps(plan, indent=1) + "\n").encode())
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{file}: not a plan ({error}); remove the folder or name another") from error
    if there != mine:
        told = [f"{name}: {_short(a)} there, {_short(b)} asked" for name, a, b in _differences(there, mine)]
        more = f" and {len(told) - MANY} more" if len(told) > MANY else ""
        raise ValueError(
            f"{folder} holds the work of another evaluation ({'; '.join(told[:MANY])}{more}); name another folder"
        )


def _differences(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from _differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name, a, b


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:10] + "..." + text[-8:]
