"""Models as files: a folder of safetensors and JSON with a checksum of each, and everything `MODEL` may name."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from . import adapters, data, hub
from ._version import __version__
from .conditioning import Conditioning
from .denoiser import Denoiser, EmpiricalDenoiser, Preconditioned
from .design import Design
from .errors import FormatError
from .files import check_manifest, folder_written_atomically
from .networks import Network
from .preconditioning import Preconditioning
from .progress import Report, silent

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_BESIDE = ("README.md", "LICENSE*", ".git*", ".cache/huggingface/*")  # what lies beside a model on the hub


def save(
    denoiser: Denoiser, folder: str | Path, *, design: Design | None = None, info: dict[str, Any] | None = None
) -> Path:
    """Write a model directory: model.safetensors, model.json, manifest.json, all or nothing.

    `design` is the design it was trained with (its own when loaded from a file); `info` is JSON data
    about training and data. Raises FileExistsError when the folder has something in it, TypeError for
    a denoiser that is not a network or whose network was not made from a configuration.
    """
    if not isinstance(denoiser, Preconditioned) or denoiser.network_config is None:
        raise TypeError(
            f"save: got {type(denoiser).__name__}; expected an ed.Preconditioned built from a network configuration, "
            "e.g. ed.Preconditioned(ed.networks.MLP(), ed.preconditioning.EDM(), shape=(2,))"
        )
    info = dict(denoiser.info if info is None else info)
    if design is not None:
        info["design"] = design.to_dict()
    description = {
        "format": FORMAT,
        "network": denoiser.network_config.to_dict(),
        "preconditioning": denoiser.preconditioning.to_dict(),
        "shape": list(denoiser.shape or ()),
        "label_dim": denoiser.label_dim,
        **_asked_of_callers(denoiser),
        **_own_levels(denoiser),
        "info": info,
        "versions": {"elucidiff": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    with folder_written_atomically(Path(folder)) as new:
        save_file({k: v.detach().contiguous() for k, v in denoiser.network.state_dict().items()}, new / WEIGHTS)
        (new / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return Path(folder)


def load(path: str | Path, *, progress: Report = silent) -> Denoiser:
    """The denoiser that a path names.

    - a model directory, or a run directory (its newest snapshot);
    - a file of weights of a known project (EDM, EDM2, k-diffusion, score_sde, guided-diffusion), see `ed.adapters`;
    - a folder of diffusers: a pipeline, or a model with its scheduler, see `ed.adapters.diffusers.load`;
    - "owner/name" or "hf://owner/name@revision" on the hub, where no folder `owner` is here: one of these two folders;
    - "exact:DATA": the exact denoiser of a data set, DATA being anything `ed.data.load` reads.

    Nothing in a file is executed. Raises FileNotFoundError, or FormatError naming what is wrong.
    """
    text = str(path)
    if text.startswith("exact:"):
        dataset = data.load(text.removeprefix("exact:"), lambda done, total: progress(done, total, "decoding"))
        return exact_denoiser(dataset)
    folder = Path(path)
    if not folder.exists():
        if (named := hub.wanted(text)) is None:
            raise FileNotFoundError(
                f"{path}: no such model; expected a model or run directory, owner/name on the hub, or exact:DATA"
            )
        folder = hub.download(named)
    if not folder.is_dir():
        return adapters.load_file(path)
    if not (folder / DESCRIPTION).is_file() and adapters.diffusers.is_folder(folder):
        return adapters.diffusers.load(folder)
    return _load_model(newest_snapshot(folder) if (folder / "snapshots").is_dir() else folder)


def newest_snapshot(run: Path) -> Path:
    """The last snapshot of a run directory. Raises FormatError when there is none yet."""
    snapshots = sorted(p for p in (run / "snapshots").iterdir() if p.is_dir() and p.name.isdigit())
    if not snapshots:
        raise FormatError(f"{run}: the run has no snapshot yet")
    return snapshots[-1]


def exact_denoiser(dataset: data.Dataset) -> EmpiricalDenoiser:
    """The exact denoiser of a data set, class-conditional when it has class labels."""
    indices = dataset.labels is not None and dataset.labels.ndim == 1
    labels = torch.from_numpy(dataset.labels) if indices else None
    return EmpiricalDenoiser(dataset.tensor(), labels, dataset.label_dim if indices else None)


def _load_model(folder: Path) -> Preconditioned:
    if not (folder / DESCRIPTION).is_file():
        raise FormatError(f"{folder}: not a model directory ({DESCRIPTION} is missing)")
    check_manifest(folder, aside=_BESIDE)
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']}; this version reads format {FORMAT}")
        denoiser = Preconditioned(
            Network.from_dict(description["network"]),
            Preconditioning.from_dict(description["preconditioning"]),
            shape=[int(n) for n in description["shape"]],
            label_dim=int(description["label_dim"]),
            vector_labels=bool(description.get("vector_labels", False)),
            conditioning=Conditioning.from_dict(stored) if (stored := description.get("conditioning")) else None,
        )
        denoiser.network.load_state_dict(load_file(folder / WEIGHTS))
        low, high = description.get("sigma_range", (denoiser.sigma_min, denoiser.sigma_max))
        denoiser.sigma_min, denoiser.sigma_max = float(low), float(high)
        denoiser.info = dict(description["info"])
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise FormatError(f"{folder}: cannot be read as a model: {error}") from error
    return denoiser.eval().requires_grad_(False)


def _asked_of_callers(denoiser: Preconditioned) -> dict[str, Any]:
    """What model.json says only of models that are called with vectors as labels or with a condition."""
    vectors = {"vector_labels": True} if denoiser.vector_labels else {}
    return vectors | ({} if denoiser.conditioning is None else {"conditioning": denoiser.conditioning.to_dict()})


def _own_levels(denoiser: Preconditioned) -> dict[str, Any]:
    """The noise levels [lowest, highest] of a model whose file narrowed those of its preconditioning."""
    usual = denoiser.preconditioning.sigma_min, denoiser.preconditioning.sigma_max
    own = denoiser.sigma_min, denoiser.sigma_max
    return {} if own == usual else {"sigma_range": [own[0], "inf" if math.isinf(own[1]) else own[1]]}


def design_of(denoiser: Denoiser) -> Design | None:
    """The design a loaded model was trained with; None for exact denoisers."""
    stored = getattr(denoiser, "info", {}).get("design")
    return None if stored is None else Design.from_dict(stored)
