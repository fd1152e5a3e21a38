"""One process of a machine at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there each process does the work, and what is finished first is taken
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_one(place: Path) -> Iterator[None]:
    """Wait until no other process is about to make the file or folder `place`.

    The lock, a hidden file beside it, is the operating system's and goes with its process: it cannot be stale.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with place.with_name(f".{place.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
