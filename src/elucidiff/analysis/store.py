"""Finished measurements in a file of lines, recognised by everything they depend on, so that a killed study resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
