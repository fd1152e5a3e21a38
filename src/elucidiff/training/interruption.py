"""Ends that come from outside: signals, a time limit, a second trainer in the same folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None  # type: ignore[assignment]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_CODE = 85  # of a run that stopped with its state saved: start it again


class TrainingStopped(RuntimeError):
    """A run was asked to stop and saved its state; `resume` goes on from there. The message says where."""


class Interruption:
    """Whether to stop: after SIGTERM or SIGINT, or when a time limit, in seconds, is over. None: no limit."""

    def __init__(self, time_limit: float | None = None) -> None:
        self.reason: str | None = None
        self.deadline = None if time_limit is None else time.monotonic() + time_limit

    def asked(self) -> str | None:
        """The reason to stop; None to go on."""
        if self.reason is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.reason = "the time limit"
        return self.reason

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Within it the first signal only sets the reason, and the second one ends the process at once.

        Outside the main thread, where Python has no signals, only the time limit counts.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def handle(number: int, frame: FrameType | None) -> None:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            self.reason = signal.Signals(number).name

        try:
            for number in SIGNALS:
                signal.signal(number, handle)
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold RUN/lock, which says who trains here. Raises RuntimeError when another process holds it.

    The lock is the operating system's and goes with its process, however that ends: it cannot be stale.
    """
    if fcntl is None:
        yield
        return
    with (run / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RuntimeError(
                f"{run}: another process trains here ({_holder(file.read())}); wait or stop it"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        found: dict[str, Any] = json.loads(text)
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"
