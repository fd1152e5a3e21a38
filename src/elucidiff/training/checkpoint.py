"""The full state of a run in files: written whole or not at all, the last two kept, damage noticed."""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
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
    """Write RUN/checkpoint/NNNNNNNNNNNN, by images seen, then remove all but the last two. See `writing`."""
    with writing(run, images, state) as new:
        save_file({name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}, new / TENSORS)
    return run / FOLDER / f"{images:012d}"


@contextmanager
def writing(run: Path, images: int, state: State) -> Iterator[Path]:
    """A folder to write the tensors into, which becomes a checkpoint; then all but the last two are removed.

    Temporary name, flush, fsync, rename, fsync of the folder: a crash at any moment leaves the ones before. Raises
    OSError naming the folder and the bytes needed where the disk is full; nothing half stays behind.
    """
    folder = run / FOLDER / f"{images:012d}"
    needed = sum(t.numel() * t.element_size() for t in state.tensors.values())
    try:
        with folder_written_atomically(folder) as new:
            yield new
            facts = {"format": FORMAT, "images": images, **state.facts}
            (new / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except FileExistsError:
        raise
    except (OSError, SafetensorError) as error:
        number, reason = _reason(error)
        raise OSError(number, f"{folder}: a checkpoint of {needed:,} bytes: {reason}") from error
    keep_the_last(run)


def keep_the_last(run: Path) -> None:
    """Remove all checkpoints but the last two; after a save, and where a run goes on that died between the two."""
    for old in stored(run)[:-KEPT]:
        shutil.rmtree(old)


def _reason(error: OSError | SafetensorError) -> tuple[int, str]:
    """The number and the text of an error of the system; safetensors tells the number in its text only."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO, error.strerror or str(error)
    told = re.search(r"os error (\d+)", str(error))
    return int(told[1]) if told else errno.EIO, str(error)


@contextmanager
def saying_what_is_full(run: Path) -> Iterator[None]:
    """Within it an error for want of space names the run, what is free and what a checkpoint and a model take."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, reason = _reason(error)
        if number not in (errno.ENOSPC, errno.EDQUOT) or str(run) in str(error):
            raise
        newest = [*stored(run)[-1:], *sorted((run / "snapshots").glob("[0-9]*"))[-1:]]
        needed = sum(p.stat().st_size for folder in newest for p in folder.iterdir())
        free = shutil.disk_usage(run).free
        told = f"{run}: {reason}; {free:,} bytes are free, what is written next takes up to {needed:,}"
        raise OSError(number, told) from error


def stored(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    folder = run / FOLDER
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()) if folder.is_dir() else []


def read(run: Path, say: Say = lambda text: None, *, on_disk: bool = False) -> State | None:
    """The newest good checkpoint of a run; None where it has none at all. A damaged one is said, and passed over.

    on_disk: its tensors are checked, but read only when they are asked for, and by all processes at once in `fill`.
    Raises NoGoodCheckpoint where there are some and all are damaged.
    """
    found = stored(run)
    for folder in reversed(found):
        try:
            check_manifest(folder)
            return _read(folder, on_disk)
        except FormatError as error:
            say(f"{folder.name}: damaged, the one before is used ({error})")
    if found:
        raise NoGoodCheckpoint(f"{run / FOLDER}: all {len(found)} checkpoints are damaged; nothing was changed")
    return None


def read_at(run: Path, images: int, *, on_disk: bool = False) -> State:
    """The checkpoint after so many images. Raises FormatError where it is damaged.

    on_disk: as in `read`; the process that chose this one has compared it with its manifest.
    """
    folder = run / FOLDER / f"{images:012d}"
    if not on_disk:
        check_manifest(folder)
    return _read(folder, on_disk)


def fill(tensors: dict[str, Tensor], state: State) -> None:
    """Give tensors the content that a state has under their names. Raises FormatError or KeyError where it has none.

    They may be pieces (`sharded_state`) where the state is on the disk: then all processes do it at once.
    """
    if hasattr(state.tensors, "into"):
        state.tensors.into(tensors)
        return
    for name, t in tensors.items():
        found = state.tensors[name]
        if found.shape != t.shape:
            raise FormatError(f"checkpoint: not of this model ({name}: {tuple(found.shape)}, not {tuple(t.shape)})")
        t.copy_(found)


def _read(folder: Path, on_disk: bool) -> State:
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise FormatError(f"{folder}: format {facts['format']}; this version reads {FORMAT}")
        if (folder / TENSORS).is_file() and not on_disk:
            return State(load_file(folder / TENSORS), facts)
        from .sharded_state import OnDisk  # which takes seconds to import

        found = OnDisk(folder)
        return State(found if on_disk else found.whole(), facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{folder}: not a checkpoint ({error})") from error


def set_aside(run: Path, path: Path) -> Path:
    """Move a file or folder of a run to RUN/replaced, under its own name and a number: nothing is lost."""
    folder = run / "replaced"
    folder.mkdir(exist_ok=True)
    number = sum(1 for p in folder.iterdir() if p.name.startswith(f"{path.name}-"))
    return path.rename(folder / f"{path.name}-{number}")


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left half-written: hidden temporary folders and files, not those of others."""
    for parent in (run / FOLDER, run / "snapshots"):
        for path in parent.glob(".*") if parent.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)
    for path in (p for name in ("config.json", "*.jsonl", "stopped") for p in run.glob(f".{name}.*")):
        path.unlink(missing_ok=True)


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
