"""The constructor arguments of published networks as our configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, unknown
from .adm import ADM
from .ddpmpp import DDPMPP
from .edm2 import EDM2
from .ncsnpp import NCSNPP
from .network import Network

# Published argument -> our field. What is left out takes our default, which is the published one.
_COMMON = {
    "model_channels": "channels",
    "channel_mult": "multipliers",
    "num_blocks": "blocks",
    "attn_resolutions": "attention",
    "dropout": "dropout",
}
_EDM = {**_COMMON, "augment_dim": "augment_dim", "channel_mult_emb": "channel_mult_emb"}
_SONG = {
    "channel_mult_noise": "channel_mult_noise",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "resample_filter": "taps",
}
_FIELDS = {
    "SongUNet": _EDM,
    "DhariwalUNet": _EDM,
    "EDM2": {**_COMMON, "logvar_channels": "logvar_channels"},
}
_DDPMPP = {"channel_mult_noise": 1, "encoder_type": "standard", "decoder_type": "standard", "resample_filter": (1, 1)}
# Of the preconditioning, the data, the precision or the training: no matter of the architecture.
_ELSEWHERE = {
    *("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min", "sigma_max", "sigma_data", "beta_d"),
    *("beta_min", "M", "epsilon_t", "C_1", "C_2", "model_type", "label_dropout"),
}


def from_arguments(architecture: str, arguments: Mapping[str, Any], *, doubled_output: bool = False) -> Network:
    """The configuration of a published network, from its class's name and its constructor's arguments.

    `architecture` is "SongUNet" (DDPM++ and NCSN++), "DhariwalUNet" (ADM) or "EDM2"; `doubled_output` holds for ADM
    under iDDPM's preconditioning. Arguments of the preconditioning and of the data are passed over, and None is an
    argument left out. Raises FormatError for arguments that no published network has, since they could change what it
    computes.
    """
    if architecture not in _FIELDS:
        raise FormatError(unknown("published architecture", architecture, _FIELDS))
    variants = ("embedding_type", *_SONG) if architecture == "SongUNet" else ()
    known = {*_FIELDS[architecture], *variants, *_ELSEWHERE}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    for name in arguments:
        if name not in known:
            raise FormatError(unknown(f"argument of {architecture}", name, known))
    fields = {own: arguments[name] for name, own in _FIELDS[architecture].items() if name in arguments}
    try:
        if architecture == "SongUNet":
            return _song(arguments, fields)
        if architecture == "DhariwalUNet":
            return ADM(**fields, doubled_output=doubled_output)
        return EDM2(**fields)
    except (TypeError, ValueError) as error:
        raise FormatError(f"arguments of {architecture}: {error}") from error


def _song(arguments: Mapping[str, Any], fields: dict[str, Any]) -> Network:
    chosen = {name: arguments.get(name, default) for name, default in _DDPMPP.items()}
    chosen["resample_filter"] = tuple(chosen["resample_filter"])
    embedding = arguments.get("embedding_type", "positional")
    if embedding == "fourier":
        return NCSNPP(**fields, **{_SONG[name]: value for name, value in chosen.items()})
    if embedding == "positional" and chosen == _DDPMPP:
        return DDPMPP(**fields)
    raise ValueError(f"got embedding_type {embedding!r} with {chosen}; expected fourier, or DDPM++'s {_DDPMPP}")
