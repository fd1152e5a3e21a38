"""Features of reference data, kept between evaluations: they cost as much as those of the samples, and never change."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..download import home
from ..files import write_atomically
from ..metrics import Features, Named, extractor_hash

PAYS = 5.0  # seconds; what takes less is not kept
FORMAT = 1


def kept_features(
    fingerprint: str, extractor: Features, device: str, compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `compute` makes of data with this fingerprint, or what it made of them before.

    Kept in CACHE/features (ELUCIDIFF_CACHE, else in the user's cache folder) by the fingerprint of the data, the
    extractor with its weights' hash, the device and torch's version; files may be removed at any time. Damaged ones
    count as absent, and a folder that cannot be written is no error. Functions that the user named are asked each
    time: what they depend on is not known.
    """
    if isinstance(extractor, Named):
        return compute()
    place = _place(fingerprint, extractor, device)
    if (found := _read(place)) is not None:
        return found
    began = time.perf_counter()
    found = {name: t.contiguous() for name, t in compute().items()}
    if time.perf_counter() - began >= PAYS:
        with suppress(OSError):
            write_atomically(place, save(found, metadata={"sha256": _digest(found)}))
    return found


def _place(fingerprint: str, extractor: Features, device: str) -> Path:
    facts = [FORMAT, fingerprint, str(extractor), extractor_hash(extractor), device, str(torch.__version__)]
    return home() / "features" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.safetensors"


def _read(place: Path) -> dict[str, Tensor] | None:
    try:
        with safe_open(place, framework="pt") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return found if (opened.metadata() or {}).get("sha256") == _digest(found) else None
    except (SafetensorError, OSError):
        return None


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
