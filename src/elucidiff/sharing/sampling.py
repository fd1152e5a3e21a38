"""`sample_into`: samples into a folder by any number of processes, each of which may be stopped and started again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..denoiser import Denoiser, FixedBatch, as_denoiser, evaluation_mode
from ..guidance import Guided
from ..portions import Portion
from ..progress import bar
from ..request import Request
from ..result import PROVENANCE, Part, Result
from ..sampler import Sampler, sampler_of
from .merging import merge
from .plan import plan_of
from .store import Store

if TYPE_CHECKING:
    from ..design import Design

EVERYTHING = Portion()


@dataclass(frozen=True)
class Standing:
    """How far the samples in `folder` are after a call.

    samples, parts: in all. there: parts that are drawn, by whomever; drawn: by this call. merged: whether this call put
    the parts together. record: what samples.json says, without labels; None while parts are missing: until then those
    that are there are in `work`.
    """

    folder: Path
    work: Path
    samples: int
    parts: int
    there: int
    drawn: int
    merged: bool
    record: dict[str, Any] | None

    @property
    def complete(self) -> bool:
        """Whether the folder is there."""
        return self.record is not None


def sample_into(
    folder: str | Path,
    denoiser: Denoiser | Callable[..., Tensor],
    sampler: Sampler | Design,
    *,
    seeds: Sequence[int],
    labels: Tensor | Sequence[int] | int | None = None,
    shape: Sequence[int] | None = None,
    portion: Portion = EVERYTHING,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float64,
    notes: dict[str, Any] | None = None,
    progress: bool = False,
    **conditions: Any,
) -> Standing:
    """Draw this process's portion of the samples into a folder; the one that completes them merges.

        sample_into("samples", denoiser, ed.EDM, seeds=range(50_000), portion=Portion.parse("3/8"))

    The seeds are cut into parts of `batch_size`, which lie in FOLDER.parts until all are there. Parts that are there
    are not drawn again, but for damaged ones, so that the same call goes on after an interruption; nothing depends on
    how many processes there are, and they neither wait for each other nor need a network between them, only the same
    disk. The last to finish merges: the folder then holds the same files, byte for byte, as
    `ed.sample(FixedBatch(denoiser, batch_size), sampler, seeds=seeds)` saved with `.save(folder, **notes)`, but for the
    seconds, which are added up over the processes. Samples of a latent model are decoded first.

    On a processor of another kind, or with another number of threads, kernels may sum in another order, and the last
    bits differ: another device or release of torch is refused, the threads are left to the caller.

    Args:
        folder: new, or from an earlier call with the same arguments.
        denoiser: a Denoiser, or any function (x, sigma, **conditions) -> D.
        sampler: a Sampler, or a Design, whose sampler is used.
        seeds: one integer a sample; sample k depends on its own seed alone.
        labels: as for `ed.sample`.
        shape: of one sample; the denoiser's own when it has one.
        portion: which parts are this process's.
        batch_size: samples of a part, and rows of every call of the network.
        dtype: of the state.
        notes: JSON data for samples.json. With guidance its settings are noted too, as "guidance".
        progress: show a progress bar of this portion.
        conditions: passed to the denoiser: tensors, of which those of B rows are split, numbers, text.

    Raises:
        ValueError: for what does not fit together, and for parts that are there of another request, naming the
            differences.
        FileExistsError: when the folder holds anything but these samples.
        OSError: when a part cannot be written, say on a full disk; all others stay as they are.
    """
    denoiser, sampler = as_denoiser(denoiser), sampler_of(sampler)
    request = Request(denoiser, seeds, None, shape, labels, conditions)
    work = _Work(denoiser, sampler, request, dtype, batch_size, notes or {})
    store = Store(Path(folder), work.plan, len(work.rows))
    drawn, merged = (0, False) if work.finished(store.folder) else _work_through(store, work, portion, progress)
    record = work.finished(store.folder)
    if record is not None:
        store.remove()  # here, so that a process that was stopped before it did is made up for; the lock is closed
    there = len(store.there()) if record is None else store.count
    return Standing(store.folder, store.work, request.n, store.count, there, drawn, merged, record)


def _work_through(store: Store, work: _Work, portion: Portion, progress: bool) -> tuple[int, bool]:
    """Draw a portion, and merge where nobody else has; how many parts were drawn, and whether it merged."""
    with store.locked():
        if work.finished(store.folder) is not None:
            return 0, False
        store.open()
    drawn = _draw(store, work, portion.of(store.count), progress)
    if len(store.there()) < store.count:
        return drawn, False
    with store.locked():
        if work.finished(store.folder) is not None:
            return drawn, False
        drawn += _draw(store, work, range(store.count), progress)  # what is damaged, if anything
        try:
            merge(store, work.rows, work.whole(), work.notes)
        except OSError:  # on a disk without locks another process may have merged at the same time
            if work.finished(store.folder) is None:
                raise
            return drawn, False
    return drawn, True


def _draw(store: Store, work: _Work, parts: Sequence[int], progress: bool) -> int:
    """Draw those of the parts that are not there; how many. The end comes early when another process has merged."""
    drawn = 0
    with bar("sampling", progress) as report:
        for done, k in enumerate(parts):
            report(done, len(parts), f"parts of {work.batch_size}")
            try:
                store.check()
                if store.lacks(k):
                    result, facts = work.part(k)
                    store.write(k, result, **facts)
                    drawn += 1
            except OSError:
                if work.finished(store.folder) is None:
                    raise
                break
    return drawn


class _Work:
    """What is to be drawn, in parts: the request, where it runs, and which rows each part has."""

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        request: Request,
        dtype: torch.dtype,
        batch_size: int,
        notes: dict[str, Any],
    ) -> None:
        self.denoiser = FixedBatch(denoiser, batch_size)
        self.sampler, self.request, self.dtype, self.batch_size = sampler, request, dtype, batch_size
        self.sigmas = sampler.sigmas(self.denoiser)
        self.rows = list(request.parts(batch_size))
        self.guided = denoiser if isinstance(denoiser, Guided) else None
        self.notes = json.loads(json.dumps(notes))  # as they come back from a file
        self.plan = plan_of(request, denoiser, sampler, dtype, batch_size)
        # Labels that are missing are noticed here, before anything is written.
        self.first_labels = request.start(self.denoiser, sampler, slice(0, 1), self.sigmas, dtype)[2]

    def whole(self) -> Result:
        """The result of all parts before any is drawn."""
        nothing = torch.zeros(0)
        return Result(nothing, 0, 0.0, self.request.seeds, None, self.sampler, self.sigmas)

    def part(self, k: int) -> tuple[Result, dict[str, Any]]:
        """The samples of part k, and what is noted of them: calls of networks, the shape of latents."""
        calls = self._calls()
        with torch.no_grad(), evaluation_mode(self.denoiser):
            result = self._sampled(self.rows[k])
            pictures = self.denoiser.denoiser.decode(result.x)
        latents = None if pictures is result.x else list(result.x.shape)
        counted = None if self.guided is None else [b - a for a, b in zip(calls, self._calls(), strict=True)]
        return replace(result, x=pictures), {"calls": counted, "decoded_from": latents}

    def _calls(self) -> tuple[int, int]:
        return (0, 0) if self.guided is None else (self.guided.main_calls, self.guided.network_calls)

    def _sampled(self, rows: slice) -> Result:
        """The samples of some rows, drawn as `sample` does; one at a time with adaptive solvers."""
        started = time.perf_counter()
        size = 1 if self.sampler.solver.adaptive else self.batch_size
        done: list[Part] = []
        for start in range(rows.start, rows.stop, size):
            batch = slice(start, min(start + size, rows.stop))
            run, x, labels = self.request.start(self.denoiser, self.sampler, batch, self.sigmas, self.dtype)
            for state in run.states(x, self.sigmas, self.sampler.solver, self.sampler.stochasticity):
                x = state.x
            done.append(Part(x, labels, run.nfe, None))
        seconds = time.perf_counter() - started
        seeds = (self.request.seeds or ())[rows]
        return Result.of_parts(done, seconds=seconds, seeds=seeds, sampler=self.sampler, sigmas=self.sigmas)

    def finished(self, folder: Path) -> dict[str, Any] | None:
        """What samples.json of the folder says, when these samples are in it; None where there is no folder yet.

        Raises FileExistsError for a folder with anything else.
        """
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        try:
            record = dict(json.loads((folder / PROVENANCE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise FileExistsError(f"{folder} exists and holds other things; name another place or remove it") from None
        if others := [name for name, same in self._comparison(record).items() if not same]:
            raise FileExistsError(
                f"{folder} exists and holds samples of another request (other: {', '.join(others)}); name another "
                "place or remove it"
            )
        return {name: value for name, value in record.items() if name != "labels"}  # which may be large

    def _comparison(self, record: dict[str, Any]) -> dict[str, bool]:
        """Entry by entry, whether a finished folder is of this request, as far as samples.json says."""
        guidance = (self.plan["guidance"] or {}) | self.notes.get("guidance", {})
        recorded = record.get("guidance") or {}
        given = self.first_labels if self.request.labels is None else self.request.labels
        rows = None if given is None else given.tolist()
        return {
            "seeds": record.get("seeds") == list(self.request.seeds or ()),
            "sampler": record.get("sampler") == self.plan["sampler"],
            "labels": (record.get("labels") or [])[: len(rows or [])] == (rows or []),
            "guidance": bool(guidance) == bool(recorded) and guidance.items() <= recorded.items(),
            **{name: record.get(name) == value for name, value in self.notes.items() if name != "guidance"},
        }
