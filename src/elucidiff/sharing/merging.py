"""Parts as one folder, the same files that one process writes that draws all samples in one go."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..component import require
from ..files import folder_written_atomically
from ..result import ARRAY, Result, file_names
from .store import MERGED, Store


def merge(store: Store, rows: Sequence[slice], whole: Result, notes: dict[str, Any]) -> None:
    """Put the parts together; all must be there and good. `whole` knows the seeds, sampler and levels of all.

    The lock is held by the caller. Images are linked, where the disk can, not copied; arrays go one part at a time. So
    memory does not grow with the number of samples (but for their labels), and the parts stay as they are until the
    folder has its name.
    """
    store.remove_attempts()
    seeds = whole.seeds or ()
    names = file_names(seeds)
    with folder_written_atomically(store.work / MERGED) as new:
        if (store.part(0) / ARRAY).is_file():
            _join_arrays([store.part(k) / ARRAY for k in range(store.count)], len(seeds), new / ARRAY)
        else:
            for k, part in enumerate(rows):
                for own, final in zip(file_names(seeds[part]), names[part], strict=True):
                    _link(store.part(k) / f"{own}.png", new / f"{final}.png")
        records = [_record(store, k) for k in range(store.count)]
        _completed(whole, records).write_provenance(new, **notes | _counted(records, len(seeds), notes, store.plan))
    store.finish()


def _record(store: Store, k: int) -> dict[str, Any]:
    """What a part says of itself, its labels as a tensor: a tenth of the memory."""
    record = store.record(k)
    labels = record["labels"]
    return record | {"labels": None if labels is None else torch.tensor(labels, dtype=torch.float64)}


def _completed(whole: Result, records: list[dict[str, Any]]) -> Result:
    """The result of all parts, its samples left out: one number stands for them that has their shape and dtype."""
    labels = [r["labels"] for r in records if r["labels"] is not None]
    one = torch.zeros((), dtype=getattr(torch, records[0]["dtype"]))
    return replace(
        whole,
        x=one.expand(len(whole.seeds or ()), *records[0]["shape"][1:]),
        nfe=max(r["nfe"] for r in records),
        seconds=sum(r["seconds"] for r in records),
        labels=torch.cat(labels) if labels else None,
    )


def _counted(records: list[dict[str, Any]], n: int, notes: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """What is noted of a guided and of a latent model when all is drawn."""
    found: dict[str, Any] = {}
    if plan["guidance"] is not None:
        main, network = (sum(r["calls"][i] for r in records) for i in range(2))
        evaluations = round(max(r["nfe"] for r in records) * network / main, 2)
        found["guidance"] = plan["guidance"] | notes.get("guidance", {}) | {"network_evaluations": evaluations}
    if (latents := records[0]["decoded_from"]) is not None:
        found["decoded_from"] = [n, *latents[1:]]
    return found


def _join_arrays(parts: Sequence[Path], n: int, path: Path) -> None:
    """One samples.npz of those of the parts, as numpy writes it, with one part in memory at a time."""
    first = _samples(parts[0])
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (n, *first.shape[1:]),
    }
    stored = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
    with stored as archive, archive.open("samples.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            x = _samples(part)
            require(x.dtype == first.dtype and x.shape[1:] == first.shape[1:], f"{part}: samples of another shape")
            member.write(np.ascontiguousarray(x).data)


def _samples(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["samples"]


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy on disks that have no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
