"""Checkpoints of k-diffusion (Crowson; MIT): its first network for images, "image_v1"."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..component import require
from ..denoiser import Preconditioned
from ..errors import FormatError
from ..foreign import clip, read
from ..networks import KDiffusionV1
from ..preconditioning import EDM
from .building import check_not_empty, denoiser_of, of_file, provenance

AUGMENT_DIM = 9  # labels of its augmentation wrapper, before those of mapping_cond
_WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|inner_model)\.)*")
_OUTER = {
    "mapping.0": "embedding.linear0",
    "mapping.2": "embedding.linear1",
    "proj_in": "stem",
    "proj_out": "conv",
}
_BLOCK = {"main.0.mapper": "norm_in.affine", "main.2": "conv_in", "main.4.mapper": "norm_out.affine",
          "main.6": "conv_out", "skip": "skip"}  # fmt: skip
_ATTENTION = {"norm_in.mapper": "norm.affine", "qkv_proj": "qkv", "out_proj": "proj"}
# What a configuration can ask for that KDiffusionV1 does not do, and what it calls it.
_REFUSED = {
    "unet_cond_dim": "an image as a condition",
    "cross_cond_dim": "cross-attention",
    "skip_stages": "stages that are left out",
}


def load(path: str | Path, config: str | Path | Mapping[str, Any] | None = None, *, ema: bool = True) -> Preconditioned:
    """The denoiser of a checkpoint of k-diffusion, {"config": ..., "model": state dict, "model_ema": state dict, ...}.

    `config` is k-diffusion's configuration, {"model": {"type": "image_v1", ...}, ...}, or its JSON file. Left out, it
    is the one in the checkpoint (or in the metadata of a safetensors file), or else the file of the same name with
    .json, or config.json, beside it. `ema` takes the averaged weights where there are any.

    The preconditioning is EDM's with sigma_data. The augment labels are zero unless given; mapping_cond, where
    the network takes one, is given as `labels`; a predicted variance is left out. The range of noise levels is kept in
    info["imported"]. Dropout is as configured, for fine-tuning; k-diffusion 0.1.1 leaves that of attention on when it
    samples, here it is off then.

    Compared with k-diffusion 0.1.1.post1 on random weights. No published weights were at hand: files of other
    releases may differ in what their tensors do not show (the activation, the norms' groups).

    Raises FileNotFoundError; FormatError for a damaged file, a missing configuration, and what is not supported:
    the hourglass transformers (image_transformer_v1 and v2), cross-attention, images as conditions, stages left out.
    """
    value = read(path)
    given = _json(Path(config)) if isinstance(config, (str, Path)) else config
    return from_value(value, path, given, ema=ema)


def recognises(value: Any) -> bool:
    """Whether what `foreign.read` gave is a checkpoint of k-diffusion, or the state dict in one."""
    if not isinstance(value, dict):
        return False
    configured = isinstance(value.get("model"), dict) and _type_of(value.get("config")).startswith("image_")
    names = list(_renamed(_state(value, True)[0]))
    return configured or "timestep_embed.weight" in names or _is_transformer(names)


def from_value(
    value: Any, path: str | Path, config: Mapping[str, Any] | None = None, *, ema: bool = True
) -> Preconditioned:
    """The denoiser in what `foreign.read` gave, see `load`; beside `path` a configuration may lie."""
    with of_file(path):
        if not recognises(value):
            raise FormatError("these tensors do not belong to a network of k-diffusion")
        given, averaged = _state(value, ema)
        state = _renamed(given)
        if len(state) < len(given):
            raise FormatError("two of its tensors have the same place in the network")
        found = config if config is not None else next(_configurations(value, Path(path)), None)
        kind = _type_of(found)
        if _is_transformer(state) or kind.startswith("image_transformer"):
            raise FormatError("is an hourglass transformer (image_transformer_v1 or v2); supported is image_v1")
        if found is None:
            raise FormatError(
                "has no configuration, and none lies beside it; "
                "give it: ed.adapters.k_diffusion.load(path, config='config.json')"
            )
        if kind != "image_v1":
            raise FormatError(f"its configuration is of type {clip(kind or 'none')}; supported is image_v1")
        return _denoiser(state, found["model"], averaged)


def _denoiser(state: dict[str, Tensor], model: Mapping[str, Any], averaged: bool) -> Preconditioned:
    check_not_empty(state)
    for name, title in _REFUSED.items():
        if model.get(name, 0):
            raise FormatError(f"its configuration has {name} = {clip(str(model[name]))}, {title}; not supported")
    network = _network(model)
    require(sum(network.depths) <= len(state), f"depths: got {network.depths}, more blocks than there are tensors")
    size = model["input_size"]
    require(
        isinstance(size, (list, tuple)) and len(size) == 2 and all(type(side) is int for side in size),
        f"input_size: got {clip(str(size))}; expected [height, width]",
    )
    mapping = state.get("mapping_cond.weight")
    label_dim = _whole(model, "mapping_cond_dim", 0)
    if mapping is not None and mapping.shape[1:] != (network.augment_dim + label_dim,):
        raise FormatError(f"mapping_cond.weight has shape {tuple(mapping.shape)}; its configuration says "
                          f"{network.augment_dim} augment labels and mapping_cond_dim = {label_dim}")  # fmt: skip
    denoiser = denoiser_of(
        network,
        EDM(sigma_data=model.get("sigma_data", 1.0)),
        (_whole(model, "input_channels"), *size),
        label_dim,
        _mapped(state, network),
    )
    levels = {name: float(model[name]) for name in ("sigma_min", "sigma_max") if name in model}
    denoiser.info = provenance("k-diffusion", ema=averaged, **levels)
    return denoiser


def _network(model: Mapping[str, Any]) -> KDiffusionV1:
    """The configuration of our network; k-diffusion's defaults for what is left out."""
    return KDiffusionV1(
        widths=tuple(model["channels"]),
        depths=tuple(model["depths"]),
        attends=tuple(model["self_attn_depths"]),
        mapping=model["mapping_out"],
        patch=model.get("patch_size", 1),
        variance=model.get("has_variance", False),
        augment_dim=AUGMENT_DIM if model.get("augment_wrapper", True) else 0,
        dropout=model.get("dropout_rate", 0.0),
    )


def _mapped(state: dict[str, Tensor], network: KDiffusionV1) -> dict[str, Tensor]:
    """The tensors under our names; those without a place keep theirs, for `denoiser_of` to refuse."""
    left = dict(state)
    mapped: dict[str, Tensor] = {}
    if (frequencies := left.pop("timestep_embed.weight", None)) is not None:
        mapped["embedding.fourier.freqs"] = frequencies.flatten()
    if (condition := left.pop("mapping_cond.weight", None)) is not None:
        parts = condition.split([network.augment_dim, condition.shape[1] - network.augment_dim], dim=1)
        names = ("embedding.augment.weight", "embedding.label.weight")
        mapped |= {name: part for name, part in zip(names, parts, strict=True) if part.shape[1]}
    for theirs, own in _modules(network):
        for kind in ("weight", "bias"):
            if (tensor := left.pop(f"{theirs}.{kind}", None)) is not None:
                mapped[f"{own}.{kind}"] = tensor
    for name, gain in _resampling(network):
        _check_kernel(name, left.pop(name, None), gain)
    return mapped | left


def _modules(network: KDiffusionV1) -> Iterator[tuple[str, str]]:
    """Pairs of names of modules, theirs and ours."""
    yield from _OUTER.items()
    levels = len(network.widths)
    for level, (depth, attends) in enumerate(zip(network.depths, network.attends, strict=True)):
        step = 1 + attends  # a block and its attention are neighbours in one list
        up = levels - 1 - level
        # A level of the encoder begins with what halves, one of the decoder ends with what doubles.
        for theirs, own, first in (
            (f"d_blocks.{level}", f"encoder.{level}", 1),
            (f"u_blocks.{up}", f"decoder.{up}", 0),
        ):
            for j in range(depth):
                at, block = first + j * step, f"{own}.blocks.{j}"
                yield from ((f"u_net.{theirs}.{at}.{a}", f"{block}.{b}") for a, b in _BLOCK.items())
                if attends:
                    names = _ATTENTION.items()
                    yield from ((f"u_net.{theirs}.{at + 1}.{a}", f"{block}.attention.{b}") for a, b in names)


def _resampling(network: KDiffusionV1) -> Iterator[tuple[str, float]]:
    """The filters that the file holds as buffers, and the sums of their numbers."""
    levels = len(network.widths)
    for level in range(1, levels):
        yield f"u_net.d_blocks.{level}.0.kernel", 1.0
        end = network.depths[level] * (1 + network.attends[level])
        yield f"u_net.u_blocks.{levels - 1 - level}.{end}.kernel", 4.0


def _check_kernel(name: str, kernel: Tensor | None, gain: float) -> None:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    if kernel is None:
        raise FormatError(f"the tensors do not fit the network: {name} is missing")
    if kernel.shape != (4, 4) or not torch.equal(kernel.double(), gain * torch.outer(taps, taps)):
        raise FormatError(f"{name} is not the filter [1, 3, 3, 1]; others are not supported")


def _state(value: Mapping[Any, Any], ema: bool) -> tuple[dict[str, Tensor], bool]:
    """The state dict to take, and whether it is the averaged one."""
    averaged = ema and isinstance(value.get("model_ema"), dict)
    inner = value["model_ema"] if averaged else value.get("model")
    state = inner if isinstance(inner, dict) else value
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}, averaged


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without those of wrappers, of augmentation or of a parallel or compiled module."""
    return {_WRAPPERS.sub("", name, count=1): tensor for name, tensor in state.items()}


def _is_transformer(names: Iterable[str]) -> bool:
    return any(name.startswith(("patch_in.proj.", "down_levels.")) for name in names)


def _type_of(config: Any) -> str:
    """The type of the model that a configuration describes; "" for what is no configuration of k-diffusion."""
    model = config.get("model") if isinstance(config, Mapping) else None
    kind = model.get("type") if isinstance(model, Mapping) else None
    return kind if isinstance(kind, str) else ""


def _configurations(value: Mapping[Any, Any], path: Path) -> Iterator[Mapping[str, Any]]:
    """Configurations in the file and beside it, the nearest first."""
    if _type_of(value.get("config")):
        yield value["config"]
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("config")
    except SafetensorError:
        text = None
    if text is not None and _type_of(inner := json.loads(text)):
        yield inner
    for beside in (path.with_suffix(".json"), path.parent / "config.json"):
        if beside.is_file() and _type_of(inner := _json(beside)):
            yield inner


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is no configuration: {clip(str(error))}") from None


def _whole(model: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = model.get(name, default)
    require(type(value) is int, f"{name}: got {clip(str(value))}; expected a whole number")
    return int(value)
