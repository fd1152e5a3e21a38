"""Folders and objects of diffusers as denoisers. Weights come from safetensors only; no code of a folder is run."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...component import require
from ...denoiser import Denoiser, Preconditioned
from ...errors import FormatError
from ...networks import Diffusers, DiffusersModule
from ...networks.from_diffusers import json_config, model_class
from .schedules import Levels, check_table, preconditioning_of

INDEX, CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler_config.json"
_NETWORKS, _AUTOENCODERS = ("unet", "transformer", "prior"), ("vae", "vqvae")
_UNSAFE = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_TIME_SCALES = {"FluxTransformer2DModel": 1.0}  # multiplies by 1000 itself
_SAFER = "ask its publisher for safetensors, or convert it where you trust it: pipeline.save_pretrained(folder)"


class Parts(NamedTuple):
    """What a denoiser is made of: modules of diffusers, the scheduler's config, the pipeline's model_index."""

    network: Any
    scheduler: Mapping[str, Any]
    autoencoder: Any = None
    contents: Mapping[str, Any] | None = None
    license: str | None = None


def load(
    source: str | Path | Any,
    *,
    scheduler: Any = None,
    prediction: str | None = None,
    levels: Levels = "rounded",
    time_scale: float | None = None,
    null_class: int | None = None,
    shape: Sequence[int] | None = None,
    autoencoder: bool = True,
) -> Preconditioned:
    """The denoiser of a model of diffusers; x_t, its timesteps and its prediction are converted exactly.

    Args:
        source: a pipeline's folder (with model_index.json, or unet/ or transformer/ beside scheduler/), a model's
            folder (config.json and safetensors, with scheduler= or a scheduler folder in it or beside it), a pipeline
            object, or a model object with scheduler=. The modules of an object are used, not copied.
        scheduler: a scheduler object, its config, or its folder; replaces the one found.
        prediction: "epsilon", "v_prediction", "sample" or "flow_prediction", where the config says something else.
        levels: of a model with discrete timesteps: "rounded" to the trained ones, or "interpolated" between them.
        time_scale: what a flow model's t in (0, 1) is multiplied by; 1000, or 1 for Flux, when left out.
        null_class: the class index that means no class, for classifier-free guidance; if it is the last one it is not
            counted in label_dim.
        shape: of one sample; in_channels and sample_size of the config when left out.
        autoencoder: whether a latent model takes its autoencoder along, so that `denoiser.decode(x)` gives pictures.

    Samples are in the model's own units (latents for a latent model). Further conditions go by name:
    ed.sample(denoiser, sampler, seeds=..., encoder_hidden_states=...). The result can be saved, analysed and trained.

    Raises FileNotFoundError; FormatError for a folder that is no such model, is damaged, or has no safetensors;
    ValueError for schedulers and networks that have no conversion; MissingExtraError without diffusers.
    """
    read = isinstance(source, (str, Path))
    parts = _from_folder(Path(source), scheduler) if read else _from_object(source, scheduler)
    name = type(parts.network).__name__
    made = preconditioning_of(
        parts.scheduler, prediction=prediction, levels=levels, time_scale=time_scale or _TIME_SCALES.get(name)
    )
    coder = parts.autoencoder if autoencoder else None
    network = Diffusers(
        model=name,
        config=json_config(parts.network.config),
        autoencoder=type(coder).__name__ if coder is not None else "",
        autoencoder_config=json_config(coder.config) if coder is not None else {},
        null_class=null_class,
    )
    denoiser = Preconditioned(
        DiffusersModule(parts.network, coder, null_class),
        made,
        shape=_shape(parts.network.config, name) if shape is None else shape,
        label_dim=_label_dim(parts.network.config, name, null_class),
    )
    denoiser.network_config = network
    denoiser.info = _info(parts, name)
    return denoiser.eval().requires_grad_(False) if read else denoiser


def encode(denoiser: Denoiser, pictures: Tensor) -> Tensor:
    """Latents of pictures (B, 3, H, W) in [-1, 1], for the training and analysis of a latent model.

    Raises TypeError for a denoiser without an autoencoder.
    """
    module = getattr(denoiser, "network", None)
    if not isinstance(module, DiffusersModule) or module.autoencoder is None:
        raise TypeError(f"encode: got {type(denoiser).__name__} without an autoencoder; expected a loaded latent model")
    return module.encode(pictures)


def is_folder(folder: Path) -> bool:
    """Whether a folder is laid out as diffusers does: a pipeline, or a model with its config."""
    if (folder / INDEX).is_file() or (folder / "scheduler" / SCHEDULER_CONFIG).is_file():
        return True
    config = folder / CONFIG
    return config.is_file() and isinstance(_json(config), dict) and "_diffusers_version" in _json(config)


def _from_object(source: Any, scheduler: Any) -> Parts:
    if isinstance(source, nn.Module) and hasattr(source, "config"):
        require(
            scheduler is not None,
            f"scheduler= is needed beside a {type(source).__name__}, which does not know its levels",
        )
        return Parts(source, _scheduler_config(scheduler))
    network = next((m for name in _NETWORKS if (m := getattr(source, name, None)) is not None), None)
    if network is None:
        raise TypeError(f"load: got {type(source).__name__}; expected a folder, or a pipeline or model of diffusers")
    coder = next((m for name in _AUTOENCODERS if (m := getattr(source, name, None)) is not None), None)
    own = scheduler if scheduler is not None else source.scheduler
    return Parts(network, _scheduler_config(own), coder, dict(source.config))


def _from_folder(folder: Path, scheduler: Any) -> Parts:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected a pipeline or model that diffusers saved")
    index = _json(folder / INDEX) if (folder / INDEX).is_file() else None
    place = next((folder / name for name in _NETWORKS if (folder / name / CONFIG).is_file()), None)
    if place is None and (folder / CONFIG).is_file():
        place = folder
    if place is None:
        raise FormatError(
            f"{folder}: holds none of {', '.join(_NETWORKS)} with {CONFIG}; expected a model of diffusers"
        )
    found = scheduler if scheduler is not None else _scheduler_folder(folder)
    coder = next((folder / name for name in _AUTOENCODERS if (folder / name / CONFIG).is_file()), None)
    return Parts(
        _read_model(place),
        _scheduler_config(found),
        None if coder is None else _read_model(coder),
        index,
        _license(folder),
    )


def _scheduler_folder(folder: Path) -> Path:
    for place in (folder / "scheduler", folder, folder.parent / "scheduler"):
        if (place / SCHEDULER_CONFIG).is_file():
            return place
    raise FormatError(f"{folder}: {SCHEDULER_CONFIG} is missing, also in scheduler/ and beside; give scheduler=")


def _scheduler_config(scheduler: Any) -> dict[str, Any]:
    """The config of a scheduler object, of a folder or file that holds one, or as given."""
    if isinstance(scheduler, (str, Path)):
        path = Path(scheduler)
        scheduler = _json(path / SCHEDULER_CONFIG if path.is_dir() else path)
    if isinstance(scheduler, Mapping):
        return dict(scheduler)
    if not hasattr(scheduler, "config"):
        raise TypeError(
            f"scheduler: got {type(scheduler).__name__}; expected one of diffusers, its config or its folder"
        )
    config = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
    check_table(config, scheduler)
    return config


def _read_model(folder: Path) -> Any:
    """A model of diffusers with its weights, which must be safetensors."""
    config = _json(folder / CONFIG)
    files = sorted(p.name for p in folder.iterdir() if p.is_file())
    safe = [name for name in files if name.endswith(".safetensors")]
    if not safe:
        unsafe = [name for name in files if name.endswith(_UNSAFE)]
        if unsafe:
            raise FormatError(f"{folder / unsafe[0]}: a pickle, which can run code when it is read; {_SAFER}")
        raise FormatError(f"{folder}: has no weights (*.safetensors); {_SAFER}")
    try:
        cls = model_class(str(config.get("_class_name")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))  # about the library's own past
            model = cls.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, variant=_variant(safe)
            )
    except ImportError:
        raise
    except Exception as error:  # the library raises what it likes for a damaged file
        raise FormatError(f"{folder}: cannot be read as a model of diffusers: {error}") from error
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = (
            tensor.data.clone()
        )  # out of the mapped file, whose alignment changes the kernels, so the last bits
    return model


def _variant(safe: Sequence[str]) -> str | None:
    """fp16 of diffusion_pytorch_model.fp16.safetensors, where no file without a variant lies beside it."""
    names = [re.sub(r"-\d{5}-of-\d{5}", "", name).split(".") for name in safe]
    return None if any(len(parts) == 2 for parts in names) else names[0][1]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        raise FormatError(f"{path}: not a JSON file ({error})") from error


def _license(folder: Path) -> str | None:
    """The licence that a model card of the hub names in its first lines."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    head = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)
    found = re.search(r"^license:\s*(\S+)\s*$", head[1], re.M) if head else None
    return found[1].strip("\"'") if found else None


def _shape(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    channels: Any = config.get("in_channels")
    size: Any = config.get("sample_size")
    out = config.get("out_channels") or channels
    require(
        isinstance(channels, int) and out in (channels, 2 * channels),
        f"{name}: takes {channels} channels and gives {out}; a denoiser needs as many (wrap one that sees more with "
        "ed.adapters.wrap)",
    )
    require(
        isinstance(size, (int, list, tuple)),
        f"{name}: its config names no sample_size; give shape=, e.g. ({channels}, 64, 64)",
    )
    sides: Any = (size, size) if isinstance(size, int) else size
    return tuple(int(n) for n in (channels, *sides))


def _label_dim(config: Mapping[str, Any], name: str, null_class: int | None) -> int:
    """How many classes: of a class embedding, or of a DiT, which has one more row for no class."""
    count = config.get("num_class_embeds")
    if count is None and config.get("norm_type") == "ada_norm_zero":
        count = config.get("num_embeds_ada_norm")
    if config.get("class_embed_type") not in (None, "timestep"):
        count = None  # vectors: given by name, as class_labels=
    most = int(count or 0)
    require(
        null_class is None or (most > 0 and 0 <= null_class <= most),
        f"null_class: got {null_class}; {name} has {most} classes" + (f", expected 0 to {most}" if most else ""),
    )
    return most - 1 if most and null_class == most - 1 else most


def _info(parts: Parts, name: str) -> dict[str, Any]:
    imported = {
        "from": "diffusers",
        "class": name,
        "scheduler": json.loads(json.dumps(parts.scheduler, default=_plain)),
        "index": json.loads(json.dumps(parts.contents, default=_plain)),
    }
    return {"imported": imported} | ({"license": parts.license} if parts.license else {})


def _plain(value: Any) -> Any:
    return (
        value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, (tuple, set)) else str(value)
    )
