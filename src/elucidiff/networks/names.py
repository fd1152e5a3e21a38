"""The names of DDPM++'s tensors in the published files, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..errors import FormatError

_PARTS = {  # of a residual block
    "norm0": "norm_in",
    "conv0": "conv_in",
    "affine": "affine",
    "norm1": "norm_out",
    "conv1": "conv_out",
    "skip": "skip",
    "norm2": "attention.norm",
    "qkv": "attention.qkv",
    "proj": "attention.proj",
}
_RESOLUTION = re.compile(r"(?:enc|dec)\.(\d+)x\1_")
_PART = rf"\.(?P<part>{'|'.join(_PARTS)})"
_RULES = [  # of a module under enc or dec, after the resolution
    (r"enc_conv", "stem"),
    (r"enc_down" + _PART, "encoder.{down}.down.{part}"),
    (r"enc_block(?P<i>\d+)" + _PART, "encoder.{down}.blocks.{i}.{part}"),
    (r"dec_in(?P<i>[01])" + _PART, "middle.{i}.{part}"),
    (r"dec_up" + _PART, "decoder.{up}.up.{part}"),
    (r"dec_block(?P<i>\d+)" + _PART, "decoder.{up}.blocks.{i}.{part}"),
    (r"dec_aux_(?P<i>norm|conv)", "{i}"),
    (r"map_label", "embedding.label"),
    (r"map_augment", "embedding.augment"),
    (r"map_layer(?P<i>[01])", "embedding.linear{i}"),
]


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our UNet, from the flat one of a published DDPM++ (names with or without "model.").

    The tensors themselves are equal, in shape and in the order of channels. A level is published under
    its resolution; ours count from the highest in the encoder and from the lowest in the decoder. The
    buffers `resample_filter` are left out: they follow from the configuration. Raises FormatError for a
    name that DDPM++ does not have.
    """
    names = {name: name.removeprefix("model.") for name in state if not name.endswith(".resample_filter")}
    found = {int(match[1]) for match in map(_RESOLUTION.match, names.values()) if match}
    resolutions = sorted(found, reverse=True)
    renamed = {_ours(name, resolutions): state[published] for published, name in names.items()}
    if len(renamed) < len(names):  # e.g. an output at every level: the skip decoder
        raise FormatError("these tensors do not belong to a DDPM++ network: two of them have the same place in it")
    return renamed


def _ours(name: str, resolutions: list[int]) -> str:
    module, _, tensor = name.rpartition(".")
    places = {"down": 0, "up": 0}
    located = _RESOLUTION.match(module)
    if located:
        level = resolutions.index(int(located[1]))
        places = {"down": level, "up": len(resolutions) - 1 - level}
        module = module[:3] + "_" + module[located.end() :]
    for pattern, template in _RULES:
        match = re.fullmatch(pattern, module)
        if match and tensor in ("weight", "bias"):
            groups = match.groupdict()
            return template.format(i=groups.get("i"), part=_PARTS.get(groups.get("part", "")), **places) + "." + tensor
    raise FormatError(f"tensor {name!r} does not belong to a DDPM++ network")
