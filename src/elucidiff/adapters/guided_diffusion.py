"""Checkpoints of guided-diffusion (Dhariwal and Nichol 2021; OpenAI, MIT), the U-Net that is our ADM."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..component import require
from ..denoiser import Preconditioned
from ..errors import FormatError
from ..foreign import read, state_dict
from ..formulation import iddpm_levels
from ..networks import ADM
from ..preconditioning import IDDPM
from .building import check_not_empty, denoiser_of, multipliers_of, of_file, provenance, renamed, width

_BLOCK = {
    "in_layers.0": "norm_in",
    "in_layers.2": "conv_in",
    "emb_layers.1": "affine",
    "out_layers.0": "norm_out",
    "out_layers.3": "conv_out",
    "skip_connection": "skip",
}
_NAME = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)|(middle_block)\.(\d+)\.(.+)")
_STAGES = ("input_blocks", "middle_block", "output_blocks")
Parts = list[dict[str, Tensor]]  # the modules at one place, in order


def load(
    path: str | Path,
    key: str | None = None,
    *,
    resolution: int | None = None,
    noise_schedule: str | None = None,
    diffusion_steps: int = 1000,
) -> Preconditioned:
    """The denoiser of a checkpoint of guided-diffusion, a state dict with input_blocks, middle_block, output_blocks.

    The architecture is read off the tensors. What they do not tell: `resolution`, which is taken to be such that the
    first attending level has 32 pixels, as in all published checkpoints; `noise_schedule`, "cosine" (the 64 x 64
    model; the default at that resolution) or "linear" (all others). Attention has heads of 64 channels. The
    network predicts the noise at `diffusion_steps` discrete levels; a learned variance is left out.

    `key` chooses a state dict where a file holds several. Raises FileNotFoundError; ValueError for a schedule or a key
    that does not exist; FormatError for a damaged file and for variants that our ADM does not have (resampling by
    convolutions, the additive embedding, widths below 128, half multipliers).
    """
    require(resolution is None or resolution > 0, f"resolution: got {resolution}; expected the pixels of a side")
    levels(noise_schedule or "linear", diffusion_steps)  # raises for what does not exist
    state = state_dict(read(path), str(path), key)
    with of_file(path):
        return from_state(state, resolution, noise_schedule, diffusion_steps)


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of guided-diffusion's U-Net."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= set(state)


def from_state(
    state: Mapping[str, Tensor],
    resolution: int | None = None,
    noise_schedule: str | None = None,
    diffusion_steps: int = 1000,
) -> Preconditioned:
    """The denoiser of a state dict, see `load`."""
    if not recognises(state):
        raise FormatError("these tensors do not belong to a U-Net of guided-diffusion")
    check_not_empty(state)
    groups = _grouped(state)
    mapped, network, label_dim, first = _walk(state, groups)
    resolution = 32 << first if resolution is None else resolution
    attention = tuple(resolution >> level for level in network.attention)
    channels = width(state, "input_blocks.0.0.weight", 1)
    noise_schedule = noise_schedule or ("cosine" if resolution == 64 else "linear")
    denoiser = denoiser_of(
        network.replace(attention=attention),
        IDDPM(M=diffusion_steps, table=levels(noise_schedule, diffusion_steps)),
        (channels, resolution, resolution),
        label_dim,
        mapped,
    )
    denoiser.info = provenance("guided-diffusion", noise_schedule=noise_schedule)
    return denoiser


def levels(noise_schedule: str, steps: int) -> tuple[float, ...]:
    """u_0 > ... > u_M = 0: the noise levels sqrt((1 - abar) / abar) of a schedule of betas, the noisiest first.

        linear:  beta from 0.1 / M to 20 / M
        cosine:  abar(t) = cos^2(pi/2 (t + 0.008) / 1.008), beta at most 0.999

    Source: Nichol and Dhariwal 2021. Raises ValueError for another schedule.
    """
    require(
        noise_schedule in ("linear", "cosine"), f"noise_schedule: got {noise_schedule!r}; expected linear or cosine"
    )
    require(steps >= 2, f"diffusion_steps: got {steps}; expected at least 2")
    if noise_schedule == "cosine":
        return tuple(iddpm_levels(steps, 0.001, 0.008).tolist())
    betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    require(float(betas[-1]) < 1, f"diffusion_steps: got {steps}; the linear schedule needs more than 20")
    log_abar = torch.log1p(-betas).cumsum(0)
    return (*torch.expm1(-log_abar).sqrt().flip(0).tolist(), 0.0)


def _grouped(state: Mapping[str, Tensor]) -> dict[tuple[str, int], Parts]:
    """(stage, place) -> the modules there, each a dictionary of tensors."""
    found: dict[tuple[str, int], dict[int, dict[str, Tensor]]] = {}
    for name, tensor in state.items():
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        stage, place, index, rest = match.groups()[:4] if match[1] else (match[5], match[6], "0", match[7])
        found.setdefault((stage, int(place)), {}).setdefault(int(index), {})[rest] = tensor
    return {where: [parts[i] for i in sorted(parts)] for where, parts in found.items()}


def _walk(state: Mapping[str, Tensor], groups: dict[tuple[str, int], Parts]) -> tuple[dict[str, Tensor], ADM, int, int]:
    """Our state dict; the network, with levels in the place of resolutions; the classes; the first attending level."""
    places = {stage: [parts for (at, _), parts in sorted(groups.items()) if at == stage] for stage in _STAGES}
    mapped: dict[str, Tensor] = {}
    blocks = _blocks_a_level(places["output_blocks"])
    widths, attends = _encoder(places["input_blocks"][1:], blocks, mapped)
    _middle(places["middle_block"], mapped)
    _decoder(places["output_blocks"], len(widths), blocks, mapped)
    names = {"time_embed.0": "embedding.linear0", "time_embed.2": "embedding.linear1", "input_blocks.0.0": "stem",
             "out.0": "norm", "out.2": "conv"}  # fmt: skip
    for theirs, own in names.items():
        for kind in ("weight", "bias"):
            width(state, f"{theirs}.{kind}")
            mapped[f"{own}.{kind}"] = state[f"{theirs}.{kind}"]
    label_dim = 0
    if "label_emb.weight" in state:
        label_dim = width(state, "label_emb.weight")
        mapped["embedding.label.weight"] = state["label_emb.weight"].t()
    used = sum(len(part) for parts in groups.values() for part in parts) + 8 + ("label_emb.weight" in state)
    if used != len(state):
        raise FormatError(f"{len(state) - used} of its tensors have no place in the U-Net of guided-diffusion")
    channels = width(state, "time_embed.0.weight", 1)
    _check_widths(widths, channels)
    network = ADM(
        channels=channels,
        multipliers=multipliers_of(widths, channels),
        blocks=blocks,
        attention=tuple(level for level, attending in enumerate(attends) if attending),
        channel_mult_emb=width(state, "time_embed.0.weight") // channels,
        doubled_output=width(state, "out.2.weight") == 2 * width(state, "input_blocks.0.0.weight", 1),
        dropout=0.0,
    )
    return mapped, network, label_dim, next((level for level, attending in enumerate(attends) if attending), 0)


def _check_widths(widths: list[int], channels: int) -> None:
    if channels < 128 or any(w % 64 for w in widths):
        raise FormatError(
            f"levels of {widths} channels; supported are multiples of 64 from 128 on, whose group norms have 32 groups"
        )


def _encoder(places: list[Parts], blocks: int, mapped: dict[str, Tensor]) -> tuple[list[int], list[bool]]:
    """Widths of the levels, and which attend; the tensors go into `mapped`. After `blocks` blocks one halves."""
    widths: list[int] = []
    attends: list[bool] = []
    for i, parts in enumerate(places):
        level, j = divmod(i, blocks + 1)
        if "op.weight" in parts[0]:
            raise FormatError("resamples by convolutions; supported are checkpoints with resblock_updown")
        if j == blocks:
            mapped |= _block(parts, f"encoder.{level + 1}.down")
            continue
        mapped |= _block(parts, f"encoder.{level}.blocks.{j}")
        if j == 0:
            widths.append(width(parts[0], "out_layers.3.weight"))
            attends.append(len(parts) > 1)
    if not widths:
        raise FormatError("has no residual blocks")
    return widths, attends


def _blocks_a_level(decoder: list[Parts]) -> int:
    """n, from the decoder: the last of the n + 1 places of a level also holds what doubles."""
    doubling = [i for i, parts in enumerate(decoder) if len(parts) > 1 and "qkv.weight" not in parts[-1]]
    return doubling[0] if doubling else len(decoder) - 1


def _middle(places: list[Parts], mapped: dict[str, Tensor]) -> None:
    if len(places) != 3 or any(len(p) != 1 for p in places):
        raise FormatError("the middle is not a block, attention and a block")
    mapped |= _block([places[0][0], places[1][0]], "middle.0")
    mapped |= _block(places[2], "middle.1")


def _decoder(places: list[Parts], n_levels: int, blocks: int, mapped: dict[str, Tensor]) -> None:
    """The last place of a level also holds the block that doubles, which is ours at the beginning of the next."""
    for i, parts in enumerate(places):
        level, j = divmod(i, blocks + 1)
        if j == blocks and level < n_levels - 1:
            *parts, up = parts
            if "conv.weight" in up:
                raise FormatError("resamples by convolutions; supported are checkpoints with resblock_updown")
            mapped |= _block([up], f"decoder.{level + 1}.up")
        mapped |= _block(parts, f"decoder.{level}.blocks.{j}")


def _block(parts: Parts, prefix: str) -> dict[str, Tensor]:
    """A residual block and, where there is a second module, its attention, under our names."""
    if not 1 <= len(parts) <= 2:
        raise FormatError(f"{len(parts)} modules where {prefix} belongs; expected a block, or a block and attention")
    out = renamed(parts[0], _BLOCK, prefix)
    if width(parts[0], "emb_layers.1.weight") != 2 * width(parts[0], "out_layers.3.weight"):
        raise FormatError("adds the embedding; supported are checkpoints with use_scale_shift_norm")
    return out | (_attention(parts[1], f"{prefix}.attention") if len(parts) == 2 else {})


def _attention(part: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Their rows of qkv are ordered head, (q, k, v), channel; ours head, channel, (q, k, v)."""
    names = {"norm": "norm", "qkv": "qkv", "proj_out": "proj"}
    out = renamed(part, names, prefix)
    channels = width(part, "norm.weight")
    heads = max(1, channels // 64)
    if width(part, "qkv.weight") != 3 * channels or math.gcd(channels, heads) != heads:
        raise FormatError(f"attention of {channels} channels that are not split into heads of 64")
    for kind in ("weight", "bias"):
        rows = out[f"{prefix}.qkv.{kind}"]
        rows = rows.reshape(heads, 3, channels // heads, -1).transpose(1, 2)
        out[f"{prefix}.qkv.{kind}"] = rows.reshape(3 * channels, *(() if kind == "bias" else (channels, 1, 1)))
    out[f"{prefix}.proj.weight"] = out[f"{prefix}.proj.weight"].reshape(channels, channels, 1, 1)
    return out
