"""A denoiser that came from diffusers, back in the folders of that library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...denoiser import Denoiser, Preconditioned
from ...files import folder_written_atomically
from ...networks import Diffusers, DiffusersModule
from .loading import INDEX, SCHEDULER_CONFIG


def save(denoiser: Denoiser, folder: str | Path) -> Path:
    """Write the network, autoencoder and scheduler config of a denoiser from diffusers, in the layout of a pipeline.

    `ed.adapters.diffusers.load` and from_pretrained read each part; model_index.json is written where these parts
    are the whole pipeline, so that DiffusionPipeline.from_pretrained reads it too. Raises TypeError for any other
    network: a folder of diffusers can name only its own classes; FileExistsError when the folder has something in it.
    """
    network = getattr(denoiser, "network", None)
    if not isinstance(denoiser, Preconditioned) or not isinstance(network, DiffusersModule):
        config = getattr(denoiser, "network_config", None)
        found = config.kind if config is not None else type(denoiser).__name__
        raise TypeError(
            f"diffusers has no class for {found!r}; only models that came from diffusers can be written in its format "
            "(our samplers run in its pipelines: ed.adapters.diffusers.ElucidiffScheduler)"
        )
    imported: Mapping[str, Any] = denoiser.info.get("imported", {})
    index = imported.get("index")
    held = {_name(index, ("unet", "transformer", "prior"), network.model): network.model}
    if network.autoencoder is not None:
        held[_name(index, ("vae", "vqvae"), network.autoencoder)] = network.autoencoder
    with folder_written_atomically(Path(folder)) as new:
        for name, module in held.items():
            module.save_pretrained(new / name, safe_serialization=True)
        _write(new / "scheduler" / SCHEDULER_CONFIG, _scheduler(denoiser, imported))
        if (whole := _index(index, denoiser.network_config, held, imported)) is not None:
            _write(new / INDEX, whole)
    return Path(folder)


def _name(index: Mapping[str, Any] | None, names: tuple[str, ...], module: Any) -> str:
    """The part's name in the pipeline it came from."""
    listed = next((name for name in names if index and (index.get(name) or [None])[0]), None)
    if listed is not None:
        return listed
    cls = type(module).__name__
    return names[0] if cls.startswith(("UNet", "Autoencoder")) else names[1]


def _scheduler(denoiser: Preconditioned, imported: Mapping[str, Any]) -> dict[str, Any]:
    if "scheduler" not in imported:
        raise TypeError("this model does not say which scheduler it was trained with (info['imported']['scheduler'])")
    return dict(imported["scheduler"])


def _index(
    index: Mapping[str, Any] | None, network: Any, held: Mapping[str, Any], imported: Mapping[str, Any]
) -> dict[str, Any] | None:
    """model_index.json, where what is held is the whole pipeline; that of DDPMPipeline for an unconditional network."""
    if index:
        parts = {name for name, value in index.items() if isinstance(value, list) and value and value[0]}
        return dict(index) if parts <= {*held, "scheduler"} else None
    plain = isinstance(network, Diffusers) and network.model == "UNet2DModel" and list(held) == ["unet"]
    listed = str(imported["scheduler"].get("_class_name", ""))
    if not plain or not listed.startswith("DDP"):
        return None
    return {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", listed]}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
