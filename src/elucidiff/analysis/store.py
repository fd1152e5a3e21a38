"""Finished measurements in a file of lines, recognised by everything they depend on, so that a killed study resumes."""

from __future__ import annotations

import hashlib
import json
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..component import Value
from ..denoiser import Denoiser
from ..errors import FormatError
from ..files import write_atomically

HEADER = {"elucidiff": "measurements", "format": 1}


class Store:
    """Measurements by key: an append-only file of JSON lines, or memory alone when `path` is None.

    A line is written at once and synchronised, so that a killed process loses at most the one it was
    writing; what is left of that is skipped when reading. Raises FormatError for a file of another kind.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[str, Any] = {}
        self.damaged = 0  # lines that could not be read
        if self.path is not None:
            self._open(self.path)

    def _open(self, path: Path) -> None:
        if not path.exists():
            write_atomically(path, (json.dumps(HEADER) + "\n").encode())
            return
        content = path.read_bytes()
        header, *lines = content.splitlines() or [b""]
        if _parsed(header) != HEADER:
            raise FormatError(f"{path}: not a file of measurements; name another place or remove it")
        for line in lines:
            found = _parsed(line)
            if isinstance(found, dict) and "key" in found and "value" in found:
                self._known[found["key"]] = found["value"]
            else:
                self.damaged += 1
        if not content.endswith(b"\n"):
            _append(path, b"\n")  # so that the next line does not continue the broken one

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str, measure: Callable[[], Any], note: Mapping[str, Any] | None = None) -> Any:
        """The stored value of a key; measured, stored and returned when it is new. `note` is for readers of the file.

        Values are JSON data, and come back as JSON gives them back: a resumed study sees the very same numbers.
        """
        if key not in self._known:
            line = json.dumps({"key": key, "note": dict(note or {}), "value": measure()})
            self._known[key] = json.loads(line)["value"]
            if self.path is not None:
                _append(self.path, line.encode() + b"\n")
        return self._known[key]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def key_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON data, in hexadecimal; the order of the names does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fingerprint(denoiser: Denoiser) -> str:
    """SHA-256, in hexadecimal, of what a denoiser computes with: classes, settings and weights of all its modules.

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
            f"{where} is a function made on the spot, by which a model cannot be recognised in a store; "
            "write it as a Denoiser with attributes, or leave store= out"
        )
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and numbers, in hexadecimal."""
    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + numbers.tobytes()).hexdigest()
