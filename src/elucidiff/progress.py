"""Progress bars for anything that takes longer than a second; silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Report(Protocol):
    """What long work calls: how much is done, and a short text beside the bar."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` is done."""
        ...


def silent(done: int, total: int, text: str = "") -> None:
    """Report nothing."""


@contextmanager
def bar(description: str, show: bool = True) -> Iterator[Report]:
    """A progress bar on stderr with time left; `silent` when not shown or when stderr is not a terminal."""
    if not show or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None, text="")

        def report(done: int, total: int, text: str = "") -> None:
            progress.update(task, completed=done, total=total, text=text)

        yield report
