"""Averages of weights of any width after training: a weighted sum of the power-function averages that were stored."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..component import require
from ..denoiser import Preconditioned
from ..errors import FormatError
from ..models import DESCRIPTION, load
from ..progress import Report, silent
from .ema import Power
from .profiles import coefficients, gamma_of, profile_error, sigma_rel_of

__all__ = ["Plan", "Stored", "coefficients", "gamma_of", "plan", "reconstruct", "sigma_rel_of", "stored_averages"]


@dataclass(frozen=True)
class Stored:
    """A model directory with a power-function average: after how many images, of which relative width."""

    folder: Path
    images: int
    sigma_rel: float
    architecture: str  # network, preconditioning, shape and classes as JSON: the same for all of a run


@dataclass(frozen=True)
class Plan:
    """What a reconstruction takes: model directories and the weight of each (`coefficients`), which sum to 1.

    at: images seen at its end. error: `profile_error`, 0 where the average itself is stored.
    """

    stored: tuple[Stored, ...]
    weights: tuple[float, ...]
    at: float
    sigma_rel: float
    error: float


def reconstruct(
    run: str | Path | Sequence[str | Path], sigma_rel: float, at: float | None = None, *, progress: Report = silent
) -> Preconditioned:
    """The model of a run whose weights are averaged with another relative width, as if it had been kept in training.

    Args:
        run: a run directory trained with `ema=(Power(),)`, or its model directories.
        sigma_rel: standard deviation of the profile over the images seen, in (0, 0.2887].
        at: images seen at the end of the average; None is the last snapshot. See `plan` for what is used.
        progress: told how many of the snapshots were added.

    Parameters are summed in float64, one snapshot in memory at a time; buffers are those of the newest. A width that
    was stored comes back bit for bit. The more snapshots, the nearer the profile: `info["training"]["ema"]` holds its
    error. EDM2 paper, section 3.2. Raises ValueError, or FormatError for a folder that is not a model.
    """
    found = plan(run, sigma_rel, at)
    used = [(s, x) for s, x in zip(found.stored, found.weights, strict=True) if x]
    newest = max((s for s, _ in used), key=lambda s: s.images)
    model = cast("Preconditioned", load(newest.folder))
    sums: dict[str, Tensor] = {}
    for done, (stored, weight) in enumerate(used):
        progress(done, len(used), stored.folder.name)
        part = model if stored is newest else load(stored.folder)
        for name, parameter in part.named_parameters():
            weighted = parameter.double() * weight
            sums[name] = weighted if name not in sums else sums[name].add_(weighted)
        del part  # before the next one is read
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(sums.pop(name))
    progress(len(used), len(used), "")
    model.info = _info(model.info, found)
    return model


def plan(run: str | Path | Sequence[str | Path], sigma_rel: float, at: float | None = None) -> Plan:
    """Which snapshots a reconstruction takes, and with which weights; reads no weights of the network.

    Snapshots up to the first one at or after `at` are used, so that the result never depends on training that came
    later. Raises ValueError for a width or a time that cannot be, and for models of different networks.
    """
    gamma = gamma_of(sigma_rel)
    known = stored_averages(run) if isinstance(run, (str, Path)) else [_given(Path(p)) for p in run]
    require(bool(known), "reconstruct: got no model directories; expected a run, or at least one snapshot of it")
    last = max(s.images for s in known)
    at = last if at is None else at
    reached = f"the snapshots reach from {min(s.images for s in known):,} to {last:,} images"
    require(0 < at <= last, f"at: got {at:,} images; {reached}")
    end = min(s.images for s in known if s.images >= at)
    stored = tuple(s for s in known if s.images <= end)
    other = next((s for s in stored if s.architecture != stored[0].architecture), None)
    if other is not None:
        raise ValueError(f"{other.folder} is another network than {stored[0].folder}; give snapshots of one run")
    pairs = [s.images for s in stored], [gamma_of(s.sigma_rel) for s in stored]
    X = coefficients(*pairs, at, gamma)
    error = 0.0 if 1.0 in X and (X != 0).sum() == 1 else profile_error(X, *pairs, at, gamma)
    return Plan(stored, tuple(X.tolist()), at, sigma_rel, error)


def stored_averages(run: str | Path) -> list[Stored]:
    """The power-function averages in the snapshots of a run, by images and width. Raises ValueError for none."""
    folders = sorted(p.parent for p in (Path(run) / "snapshots").glob(f"*/{DESCRIPTION}") if p.parent.name[0] != ".")
    if not folders:
        raise FileNotFoundError(f"{run}: not a run directory with snapshots; see elucidiff train")
    found = [stored for folder in folders if (stored := _read(folder)) is not None]
    if not found:
        raise ValueError(
            f"{run}: its snapshots hold no power-function average, from which others could be reconstructed; "
            "train with ema=(Power(),), on the command line --set ema=power"
        )
    return sorted(found, key=lambda s: (s.images, s.sigma_rel))


def _given(folder: Path) -> Stored:
    if not (folder / DESCRIPTION).is_file():
        raise FormatError(f"{folder}: not a model directory ({DESCRIPTION} is missing)")
    stored = _read(folder)
    if stored is None:
        raise ValueError(f"{folder}: not a power-function average kept in training; leave it out")
    return stored


def _read(folder: Path) -> Stored | None:
    """What model.json says of the average; None for another kind of average, and for a reconstructed one."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        training = description["info"].get("training", {})
        average = training.get("ema", {})
        if average.get("kind") != Power.kind or "reconstructed" in average:
            return None
        facts = [description[key] for key in ("network", "preconditioning", "shape", "label_dim")]
        images, sigma_rel = int(training["images_seen"]), float(average["sigma_rel"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{folder / DESCRIPTION}: cannot be read as a model of a run: {error!r}") from error
    return Stored(folder, images, sigma_rel, json.dumps(facts, sort_keys=True))


def _info(info: dict[str, Any], found: Plan) -> dict[str, Any]:
    """What model.json says: the average, and for one that was not stored what it was made of."""
    info = copy.deepcopy(info)
    average: dict[str, Any] = {"kind": Power.kind, "sigma_rel": found.sigma_rel}
    if found.error:
        average["reconstructed"] = {"snapshots": len(found.stored), "profile_error": found.error}
    info["training"] |= {"images_seen": int(found.at), "ema": average}
    return info
