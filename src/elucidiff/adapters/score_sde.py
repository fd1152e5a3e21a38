"""Checkpoints of score_sde (Song et al. 2021; Apache-2.0) in PyTorch: its NCSN++ and DDPM++ under VE and VP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import preconditioning
from ..component import require
from ..denoiser import Preconditioned
from ..errors import FormatError
from ..foreign import read
from ..networks import DDPMPP, NCSNPP, Network
from ..preconditioning import Preconditioning
from .building import check_not_empty, denoiser_of, multipliers_of, of_file, provenance, renamed, stacked_qkv, width

_BLOCK = {
    "GroupNorm_0": "norm_in",
    "Conv_0": "conv_in",
    "Dense_0": "affine",
    "GroupNorm_1": "norm_out",
    "Conv_1": "conv_out",
    "Conv_2": "skip",
}
_NAME = re.compile(r"(?:module\.)?all_modules\.(\d+)\.(.+)")
Part = dict[str, Tensor]  # the tensors of one of all_modules


def load(
    path: str | Path,
    *,
    ema: bool = True,
    resolution: int | None = None,
    sigma_min: float = 0.02,
    sigma_max: float = 100.0,
) -> Preconditioned:
    """The denoiser of a checkpoint of score_sde, {"model": state dict, "ema": {"shadow_params": ...}, ...}.

    The architecture is read off the tensors: Fourier features make it NCSN++ under VE, none DDPM++ under VP (beta from
    0.1 to 20, times up to 999). What they do not tell: `resolution`, taken to be such that the attending level has 16
    pixels, as in all published configurations; and, for VE, `sigma_min` and `sigma_max` for images in [-1, 1], twice
    those that score_sde counts in [0, 1]. `ema` takes the averaged weights where there are any.

    Raises FileNotFoundError; FormatError for a damaged file and for other architectures (the discrete networks with
    convolutions for resampling, NCSNv2, conditional batch norms).
    """
    require(resolution is None or resolution > 0, f"resolution: got {resolution}; expected the pixels of a side")
    preconditioning.VE(sigma_min, sigma_max)  # raises for levels that cannot be
    value = read(path)
    with of_file(path):
        return from_value(value, ema=ema, resolution=resolution, sigma_min=sigma_min, sigma_max=sigma_max)


def recognises(value: Any) -> bool:
    """Whether what `foreign.read` gave is a checkpoint of score_sde, or the state dict in one."""
    return any(_NAME.fullmatch(name) for name in _model(value) if isinstance(name, str))


def from_value(
    value: Any, *, ema: bool = True, resolution: int | None = None, sigma_min: float = 0.02, sigma_max: float = 100.0
) -> Preconditioned:
    """The denoiser of a checkpoint, see `load`."""
    if not recognises(value):
        raise FormatError("these tensors do not belong to a network of score_sde")
    model = {k: v for k, v in _model(value).items() if isinstance(k, str) and isinstance(v, Tensor)}
    averaged = value.get("ema") if ema and "model" in value else None
    if averaged is not None:
        model |= _shadows(model, averaged)
    check_not_empty(model)
    mapped, network, first = _walk(_parts(model))
    channels = width(mapped, "stem.weight", 1)
    resolution = 16 << first if resolution is None else resolution
    fourier = "embedding.fourier.freqs" in mapped
    chosen: Preconditioning = preconditioning.VE(sigma_min, sigma_max) if fourier else preconditioning.VP()
    network = network.replace(attention=tuple(resolution >> level for level in network.attention))  # type: ignore[attr-defined]
    denoiser = denoiser_of(network, chosen, (channels, resolution, resolution), 0, mapped)
    denoiser.info = provenance("score_sde", ema=averaged is not None)
    return denoiser


def _model(value: Any) -> Mapping[Any, Any]:
    inner = value.get("model", value) if isinstance(value, dict) else {}
    return inner if isinstance(inner, dict) else {}


def _shadows(model: Mapping[str, Tensor], averaged: Any) -> dict[str, Tensor]:
    """The averaged weights by name: they are a list, in the order of the parameters that are trained."""
    shadows = averaged.get("shadow_params") if isinstance(averaged, dict) else None
    names = [name for name in model if _NAME.fullmatch(name) and not _is_frequencies(name, model[name])]
    if not isinstance(shadows, list) or len(shadows) != len(names):
        raise FormatError(f"has no list of {len(names)} averaged weights")
    for name, shadow in zip(names, shadows, strict=True):
        if not isinstance(shadow, Tensor) or shadow.shape != model[name].shape:
            raise FormatError(f"its averaged weight of {name} has another shape")
    return dict(zip(names, shadows, strict=True))


def _is_frequencies(name: str, tensor: Tensor) -> bool:
    """The frequencies of Fourier features are not trained, and not averaged. NIN layers have a W too, a matrix."""
    return name.endswith(".W") and tensor.ndim == 1


def _parts(model: Mapping[str, Tensor]) -> list[Part]:
    """all_modules, in order, without those that have no tensors."""
    found: dict[int, Part] = {}
    for name, tensor in model.items():
        match = _NAME.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = tensor
        elif name.removeprefix("module.") != "sigmas":  # the levels of the discrete networks
            raise FormatError(f"the tensor {name} has no place in a network of score_sde")
    return [found[i] for i in sorted(found)]


def _walk(parts: list[Part]) -> tuple[dict[str, Tensor], Network, int]:
    """Our state dict; the network, with levels in the place of resolutions; the first attending level."""
    mapped: dict[str, Tensor] = {}
    left = list(reversed(parts))
    fourier = "W" in left[-1]
    if fourier:
        mapped["embedding.fourier.freqs"] = left.pop()["W"]
    for name in ("embedding.linear0", "embedding.linear1", "stem"):
        mapped |= _layer(_next(left), name)
    body = left[::-1]
    start = next((i for i, p in enumerate(body) if _is_block(p) and _inputs(p) > _outputs(p)), None)
    if start is None or start < 4:
        raise FormatError("has no decoder: these tensors do not belong to a network of score_sde")
    encoder, middle, decoder = body[: start - 3], body[start - 3 : start], body[start:]
    widths, blocks, attends, aux = _encoder(encoder, mapped)
    _middle(middle, mapped)
    heads = _decoder(decoder, len(widths), blocks, mapped)
    channels = width(mapped, "stem.weight")
    fields: dict[str, Any] = {
        "channels": channels,
        "multipliers": multipliers_of(widths, channels),
        "blocks": blocks,
        "attention": tuple(level for level, attending in enumerate(attends) if attending),
        "channel_mult_emb": width(mapped, "embedding.linear0.weight") // channels,
    }
    first = attends.index(True) if True in attends else 0
    if not fourier:
        if aux or heads:
            raise FormatError("has an auxiliary path without Fourier features, which our DDPM++ has not")
        return mapped, DDPMPP(**fields), first
    noise = 2 * len(mapped["embedding.fourier.freqs"]) // channels
    return (
        mapped,
        NCSNPP(**fields, channel_mult_noise=noise, encoder=aux or "standard", decoder=heads or "standard"),
        first,
    )


def _next(left: list[Part]) -> Part:
    if not left:
        raise FormatError("ends too early: modules are missing")
    return left.pop()


def _layer(part: Part, name: str) -> dict[str, Tensor]:
    return {f"{name}.{kind}": _tensor(part, kind, name) for kind in part}


def _tensor(part: Part, kind: str, name: str) -> Tensor:
    if kind not in ("weight", "bias"):
        raise FormatError(f"the tensor {kind} has no place in {name}")
    return part[kind]


def _is_block(part: Part) -> bool:
    return "GroupNorm_1.weight" in part


def _inputs(part: Part) -> int:
    return width(part, "Conv_0.weight", 1)


def _outputs(part: Part) -> int:
    return width(part, "Conv_0.weight")


def _resamples(part: Part) -> bool:
    """Whether a block halves or doubles: it has a skip of its own though the channels stay."""
    return _is_block(part) and "Conv_2.weight" in part and _inputs(part) == _outputs(part)


def _encoder(parts: list[Part], mapped: dict[str, Tensor]) -> tuple[list[int], int, list[bool], str]:
    """Widths of the levels, blocks a level, which levels attend, the kind of the auxiliary path."""
    widths, counts, attends, aux = [0], [0], [False], ""
    for part in parts:
        level = len(counts) - 1
        if _resamples(part):
            mapped |= _block(part, f"encoder.{level + 1}.down")
            widths.append(0)
            counts.append(0)
            attends.append(False)
        elif _is_block(part):
            mapped |= _block(part, f"encoder.{level}.blocks.{counts[-1]}")
            counts[-1] += 1
            widths[-1] = _outputs(part)
        elif "NIN_0.W" in part:
            mapped |= _attention(part, f"encoder.{level}.blocks.{counts[-1] - 1}.attention")
            attends[-1] = True
        elif "Conv2d_0.weight" in part:
            aux = "residual"
            mapped |= renamed(part, {"Conv2d_0": "residual"}, f"encoder.{level}.aux")
        elif "Conv_0.weight" in part:
            aux = "skip"
            mapped |= renamed(part, {"Conv_0": "skip"}, f"encoder.{level}.aux")
        else:
            raise FormatError(f"has an encoder with an unknown module of {', '.join(sorted(part)[:3])}")
    if len(set(counts)) != 1:
        raise FormatError(f"levels of {counts} blocks; expected the same number at each")
    return widths, counts[0], attends, aux


def _middle(parts: list[Part], mapped: dict[str, Tensor]) -> None:
    mapped |= _block(parts[0], "middle.0") | _attention(parts[1], "middle.0.attention") | _block(parts[2], "middle.1")


def _decoder(parts: list[Part], n_levels: int, blocks: int, mapped: dict[str, Tensor]) -> str:
    """The kind of the decoder; the tensors go into `mapped`."""
    level, count, outputs = 0, 0, 0
    left = list(reversed(parts))
    while left:
        part = left.pop()
        if _resamples(part):
            level, count = level + 1, 0
            mapped |= _block(part, f"decoder.{level}.up")
        elif _is_block(part):
            mapped |= _block(part, f"decoder.{level}.blocks.{count}")
            count += 1
        elif "NIN_0.W" in part:
            mapped |= _attention(part, f"decoder.{level}.blocks.{count - 1}.attention")
        elif set(part) == {"weight", "bias"} and part["weight"].ndim == 1:
            head = "" if level == n_levels - 1 else f"heads.{level}."
            mapped |= _layer(part, f"{head}norm") | _layer(_next(left), f"{head}conv")
            outputs += 1
        else:
            raise FormatError(f"has a decoder with an unknown module of {', '.join(sorted(part)[:3])}")
    return "skip" if outputs > 1 else ""


def _block(part: Part, prefix: str) -> dict[str, Tensor]:
    return renamed(part, _BLOCK, prefix)


def _attention(part: Part, prefix: str) -> dict[str, Tensor]:
    """Their q, k, v and output are four matrices W (in, out) with biases b."""
    wanted = {"GroupNorm_0.weight", "GroupNorm_0.bias", *(f"NIN_{i}.{kind}" for i in range(4) for kind in "Wb")}
    if set(part) != wanted or any(part[f"NIN_{i}.W"].ndim != 2 for i in range(4)):
        raise FormatError(f"has attention of an unknown form at {prefix}")
    q, k, v, proj = (part[f"NIN_{i}.W"].t() for i in range(4))
    return {
        f"{prefix}.norm.weight": part["GroupNorm_0.weight"],
        f"{prefix}.norm.bias": part["GroupNorm_0.bias"],
        f"{prefix}.qkv.weight": stacked_qkv(q, k, v)[..., None, None],
        f"{prefix}.qkv.bias": stacked_qkv(part["NIN_0.b"], part["NIN_1.b"], part["NIN_2.b"]),
        f"{prefix}.proj.weight": proj[..., None, None],
        f"{prefix}.proj.bias": part["NIN_3.b"],
    }
