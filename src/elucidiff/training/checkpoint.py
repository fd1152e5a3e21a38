"""The full state of a run in files: written whole or not at all, the last two kept, damage noticed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import FormatError
from ..files import check_manifest, folder_written_atomically

FOLDER, TENSORS, FACTS, FORMAT = "checkpoint", "state.safetensors", "state.json", 1
KEPT = 2  # checkpoints; the older one is removed when a newer one is complete

Say = Callable[[str], None]


class NoGoodCheckpoint(RuntimeError):
    """A run has checkpoints, but all of them are damaged."""


class State(NamedTuple):
    """Tensors by name, and JSON data."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def write(run: Path, images: int, state: State) -> Path:
    """Write RUN/checkpoint/NNNNNNNNNNNN, by images seen, then remove all but the last two.

    Temporary name, flush, fsync, rename, fsync of the folder: a crash at any moment leaves the ones before. Raises
    OSError naming the folder and the bytes needed where the disk is full; nothing half stays behind.
    """
    folder = run / FOLDER / f"{images:012d}"
    needed = sum(t.numel() * t.element_size() for t in state.tensors.values())
    try:
        with folder_written_atomically(folder) as new:
            save_file({name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}, new / TENSORS)
            facts = {"format": FORMAT, "images": images, **state.facts}
            (new / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"{folder}: a checkpoint of {needed:,} bytes: {error.strerror}") from error
    for old in stored(run)[:-KEPT]:
        shutil.rmtree(old)
    return folder


def stored(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    folder = run / FOLDER
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()) if folder.is_dir() else []


def read(run: Path, say: Say = lambda text: None) -> State | None:
    """The newest good checkpoint of a run; None where it has none at all. A damaged one is said, and passed over.

    Raises NoGoodCheckpoint where there are some and all are damaged.
    """
    found = stored(run)
    for folder in reversed(found):
        try:
            return _read(folder)
        except FormatError as error:
            say(f"{folder.name}: damaged, the one before is used ({error})")
    if found:
        raise NoGoodCheckpoint(f"{run / FOLDER}: all {len(found)} checkpoints are damaged; nothing was changed")
    return None


def read_at(run: Path, images: int) -> State:
    """The checkpoint after so many images. Raises FormatError where it is damaged."""
    return _read(run / FOLDER / f"{images:012d}")


def _read(folder: Path) -> State:
    check_manifest(folder)
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise FormatError(f"{folder}: format {facts['format']}; this version reads {FORMAT}")
        return State(load_file(folder / TENSORS), facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{folder}: not a checkpoint ({error})") from error


def set_aside(run: Path, path: Path) -> Path:
    """Move a file or folder of a run to RUN/replaced, under its own name and a number: nothing is lost."""
    folder = run / "replaced"
    folder.mkdir(exist_ok=True)
    number = sum(1 for p in folder.iterdir() if p.name.startswith(f"{path.name}-"))
    return path.rename(folder / f"{path.name}-{number}")


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left half-written: hidden temporary folders of checkpoints and snapshots."""
    for parent in (run / FOLDER, run / "snapshots"):
        for path in parent.glob(".*") if parent.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)


class Pace:
    """When to write the next one, so that writing costs below 1 % of the time.

    every: images between two; None: 60 seconds at least, and 100 times as long as writing the last took; 0: never.
    """

    def __init__(self, every: int | None, images: int = 0) -> None:
        self.every, self.images, self.took = every, images, 0.0
        self.at = time.monotonic()

    def due(self, images: int) -> bool:
        """Whether it is time, after so many images."""
        if self.every is not None:
            return self.every > 0 and images - self.images >= self.every
        return time.monotonic() - self.at >= max(60.0, 100 * self.took)

    def wrote(self, images: int, seconds: float) -> None:
        """One was written, and took so long."""
        self.images, self.took, self.at = images, seconds, time.monotonic()
