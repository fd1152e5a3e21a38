"""The folder of parts beside the one they are for: each written whole or not at all, checked when it is read."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..component import require
from ..errors import FormatError
from ..files import check_manifest, put_in_place, write_atomically
from ..result import PROVENANCE, Result
from .plan import differences, plan_digest

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None  # type: ignore[assignment]

PLAN, LOCK, MERGED = "plan.json", "lock", "merged"


class Store:
    """FOLDER.parts: the plan, the parts 000000, 000001, ... as `Result.save` writes them, and a lock.

    Processes only meet here. Every name appears by one rename, so a process that is killed leaves no half part, and
    two that draw the same one write the same bits. The lock is held while the plan is written and while the parts are
    merged; it is the operating system's and goes with its process. On disks without locks two processes may both try to
    merge: the rename decides, and the other one fails or finds the folder there.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], count: int) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.work = self.folder.with_name(self.folder.name + ".parts")
        self.plan, self.count = plan, count
        self.digest = plan_digest(plan)

    def open(self) -> None:
        """Write the plan, or find it written. Raises ValueError for another one, of which parts are drawn already."""
        path = self.work / PLAN
        if path.is_file() and self._read_plan() == self.plan:
            return
        if not path.is_file() and self.there():
            raise FormatError(f"{self.work} holds parts but no {PLAN}: remove it")
        if self.there():
            self.check()
        write_atomically(path, (json.dumps(self.plan, indent=1) + "\n").encode())

    def check(self) -> None:
        """Raise ValueError unless the plan on the disk is this one."""
        found = differences(self._read_plan(), self.plan)
        require(
            not found,
            f"{self.work} belongs to another request: {found}. Ask for the same, name another folder, or remove it",
        )

    def part(self, k: int) -> Path:
        """Where part k is, or will be."""
        return self.work / f"{k:06d}"

    def there(self) -> list[int]:
        """The parts that have been written, without a look at their content."""
        names = {p.name for p in self.work.iterdir()} if self.work.is_dir() else set()
        return [k for k in range(self.count) if self.part(k).name in names]

    def fault(self, k: int) -> str | None:
        """What is wrong with part k, every byte compared with its checksum; None for a good one."""
        try:
            check_manifest(self.part(k))
            if self.record(k)["plan"] != self.digest:
                return f"{self.part(k)}: drawn for another request"
        except (FormatError, OSError, KeyError, ValueError) as error:
            return str(error)
        return None

    def lacks(self, k: int) -> bool:
        """Whether part k has to be drawn: none is there, or a damaged one, which is removed with a warning."""
        if not self.part(k).exists():
            return True
        if (fault := self.fault(k)) is None:
            return False
        warnings.warn(f"{fault}; this part is drawn again", stacklevel=2)
        shutil.rmtree(self.part(k), ignore_errors=True)
        return True

    def record(self, k: int) -> dict[str, Any]:
        """What part k says of itself."""
        return json.loads((self.part(k) / PROVENANCE).read_text(encoding="utf-8"))

    def write(self, k: int, result: Result, **notes: Any) -> None:
        """Add part k. Raises ValueError when the plan is another one by now, OSError when it cannot be written."""
        self.check()
        try:
            result.save(self.part(k), plan=self.digest, **notes)
        except OSError:
            if self.fault(k) is not None:  # else another process was faster, with the same bits
                raise

    def finish(self) -> None:
        """Give the merged folder its name."""
        put_in_place(self.work / MERGED, self.folder)

    def remove(self) -> None:
        """Remove the parts, which are in the folder now."""
        shutil.rmtree(self.work, ignore_errors=True)

    def remove_attempts(self) -> None:
        """Remove what a process that was killed while it merged has left."""
        for left in (self.work / MERGED, *self.work.glob(f".{MERGED}.*")):
            shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time is within; others wait."""
        with self._lock_file() as file:
            if fcntl is not None:
                with suppress(OSError):  # a disk without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_file(self) -> IO[str]:
        """Opened again where another process has just merged and removed the folder in between."""
        for _ in range(9):
            self.work.mkdir(parents=True, exist_ok=True)
            try:
                return (self.work / LOCK).open("a", encoding="utf-8")
            except FileNotFoundError:
                continue
        raise FileNotFoundError(f"{self.work / LOCK}: cannot be made")

    def _read_plan(self) -> dict[str, Any]:
        path = self.work / PLAN
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise FormatError(f"{path}: not a plan ({error}); remove {self.work}") from error
