"""The names of the tensors in the published files, and ours: one table for each family, read both ways."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..errors import FormatError
from .edm2 import EDM2UNet
from .embedding import LateLabelEmbedding
from .unet import UNet

# Where tensors stand, published and ours. {R} is the level's resolution, {H} the highest one; ours count levels, the
# encoder's from the highest resolution ({down}), the decoder's from the lowest ({up}). {i} is a number; {part}, a part
# of a block, and {t}, the tensor, are listed in _PARTS and below.
_BLOCKS = {
    "enc.{R}_down.{part}": "encoder.{down}.down.{part}",
    "enc.{R}_block{i}.{part}": "encoder.{down}.blocks.{i}.{part}",
    "dec.{R}_in{i}.{part}": "middle.{i}.{part}",
    "dec.{R}_up.{part}": "decoder.{up}.up.{part}",
    "dec.{R}_block{i}.{part}": "decoder.{up}.blocks.{i}.{part}",
}
_EMBEDDING = {
    "map_noise.freqs": "embedding.fourier.freqs",
    "map_label.{t}": "embedding.label.{t}",
    "map_augment.{t}": "embedding.augment.{t}",
    "map_layer{i}.{t}": "embedding.linear{i}.{t}",
}
_EDM = {**_BLOCKS, **_EMBEDDING, "enc.{R}_conv.{t}": "stem.{t}"}
_TABLES = {
    "NCSN++": {
        **_EDM,
        "enc.{R}_aux_residual.{t}": "encoder.{down}.aux.residual.{t}",
        "enc.{R}_aux_skip.{t}": "encoder.{down}.aux.skip.{t}",
        "dec.{H}_aux_norm.{t}": "norm.{t}",
        "dec.{H}_aux_conv.{t}": "conv.{t}",
        "dec.{R}_aux_norm.{t}": "heads.{up}.norm.{t}",
        "dec.{R}_aux_conv.{t}": "heads.{up}.conv.{t}",
    },
    "ADM": {**_EDM, "out_norm.{t}": "norm.{t}", "out_conv.{t}": "conv.{t}"},
    "EDM2": {
        **{f"unet.{published}": own for published, own in _BLOCKS.items()},
        "unet.enc.{R}_conv.{t}": "stem.{t}",
        "unet.out_conv.{t}": "conv.{t}",
        "unet.out_gain": "gain",
        "unet.emb_fourier.{f}": "embedding.fourier.{f}",
        "unet.emb_noise.{t}": "embedding.noise.{t}",
        "unet.emb_label.{t}": "embedding.label.{t}",
        "logvar_fourier.{f}": "uncertainty.fourier.{f}",
        "logvar_linear.{t}": "uncertainty.linear.{t}",
    },
}
_EDM_PARTS = {
    "norm0.{t}": "norm_in.{t}",
    "conv0.{t}": "conv_in.{t}",
    "affine.{t}": "affine.{t}",
    "norm1.{t}": "norm_out.{t}",
    "conv1.{t}": "conv_out.{t}",
    "skip.{t}": "skip.{t}",
    "norm2.{t}": "attention.norm.{t}",
    "qkv.{t}": "attention.qkv.{t}",
    "proj.{t}": "attention.proj.{t}",
}
_PARTS = {
    "NCSN++": _EDM_PARTS,
    "ADM": _EDM_PARTS,
    "EDM2": {
        "conv_res0.{t}": "conv_in.{t}",
        "conv_res1.{t}": "conv_out.{t}",
        "conv_skip.{t}": "skip.{t}",
        "attn_qkv.{t}": "attention.qkv.{t}",
        "attn_proj.{t}": "attention.proj.{t}",
        "emb_linear.{t}": "affine.{t}",
        "emb_gain": "gain",
    },
}
_FIELDS = {
    "R": r"(?P<R>\d+)x(?P=R)",
    "H": r"(?P<H>\d+)x(?P=H)",
    "down": r"(?P<down>\d+)",
    "up": r"(?P<up>\d+)",
    "i": r"(?P<i>\d+)",
    "t": r"(?P<t>weight|bias)",
    "f": r"(?P<f>freqs|phases)",
}
_ANY_RESOLUTION = re.compile(r"(?:unet\.)?(?:enc|dec)\.(\d+)x\1_")


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(_FIELDS[p] if i % 2 else re.escape(p) for i, p in enumerate(pieces)))


def _rules(family: str) -> list[tuple[str, str]]:
    """All pairs of templates of a family, the parts of blocks filled in."""
    return [
        (published.replace("{part}", part), own.replace("{part}", own_part))
        for published, own in _TABLES[family].items()
        for part, own_part in (_PARTS[family].items() if "{part}" in published else [("", "")])
    ]


@functools.cache  # made when first needed: a hundred patterns take 15 ms
def _to_ours(family: str) -> list[tuple[re.Pattern[str], str]]:
    return [(_pattern(p), own) for p, own in _rules(family)]


@functools.cache
def _to_published(family: str) -> list[tuple[re.Pattern[str], str]]:
    return [(_pattern(own), p) for p, own in _rules(family)]


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our module, from the flat one of a published network (names with or without "model.").

    DDPM++, NCSN++, ADM and EDM2 are recognised by their names. The tensors themselves are equal, in shape and in the
    order of channels. A level is published under its resolution; ours count from the highest in the encoder and from
    the lowest in the decoder. The buffers `resample_filter` are left out: they follow from the configuration; so must
    the caller leave out the table `u` of iDDPM, which belongs to the preconditioning. Raises FormatError for a name
    that no such network has.
    """
    names = {name: name.removeprefix("model.") for name in state if not name.endswith(".resample_filter")}
    family = _family(names.values())
    found = {int(match[1]) for match in map(_ANY_RESOLUTION.match, names.values()) if match}
    resolutions = sorted(found, reverse=True)
    renamed = {_ours(name, family, resolutions): state[published] for published, name in names.items()}
    if len(renamed) < len(names):  # e.g. with and without "model."
        raise FormatError(f"these tensors do not belong to one {family} network: two have the same place in it")
    return renamed


def published_names(module: nn.Module) -> dict[str, str]:
    """Published name -> our name, for every tensor in the state dict of a module that a configuration built.

    Raises ValueError for a module whose family was never published (an MLP, a DiT), or that is not for square images.
    """
    if not isinstance(module, (UNet, EDM2UNet)):
        raise ValueError(f"{type(module).__name__}: no network of this kind was published; there are no names for it")
    if len(module.shape) != 3 or module.shape[1] != module.shape[2]:
        raise ValueError(f"shape: got {module.shape}; published names are those of networks for square images")
    if isinstance(module, EDM2UNet):
        family = "EDM2"
    else:
        family = "ADM" if isinstance(module.embedding, LateLabelEmbedding) else "NCSN++"
    levels = module.halvings + 1
    return {_theirs(own, family, module.shape[1], levels): own for own in module.state_dict()}


def load_published(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a published network into a module, all of them and no others, in the module's dtype.

    Works on modules made on the meta device too, which take the tensors as they are. Raises FormatError naming the
    tensors that are missing, left over or of another shape; the module is unchanged then.
    """
    given, own = from_published(state), module.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - given.keys()]
    problems += [f"{name} has no place" for name in given.keys() - own.keys()]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if given[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise FormatError(f"the tensors do not fit the network: {'; '.join(sorted(problems)[:3])}{more}")
    module.load_state_dict(given, assign=any(tensor.is_meta for tensor in own.values()))


def _family(names: Iterable[str]) -> str:
    names = list(names)
    if any(name.startswith(("unet.", "logvar_")) for name in names):
        return "EDM2"
    return "ADM" if any(name.startswith("out_") for name in names) else "NCSN++"


def _ours(name: str, family: str, resolutions: list[int]) -> str:
    for pattern, own in _to_ours(family):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        groups = match.groupdict()
        if "H" in groups and int(groups["H"]) != resolutions[0]:
            continue  # an output of a lower level
        resolution = groups.get("R") or groups.get("H")
        if resolution is not None:
            level = resolutions.index(int(resolution))
            groups |= {"down": str(level), "up": str(len(resolutions) - 1 - level)}
        return own.format(**groups)
    title = "DDPM++ or NCSN++" if family == "NCSN++" else family
    raise FormatError(f"tensor {name!r} does not belong to a {title} network")


def _theirs(own: str, family: str, side: int, levels: int) -> str:
    for pattern, published in _to_published(family):
        match = pattern.fullmatch(own)
        if match is None:
            continue
        groups = match.groupdict()
        level = int(groups["down"]) if "down" in groups else levels - 1 - int(groups.get("up", 0))
        if own.startswith(("stem.", "norm.", "conv.")):
            level = 0
        groups |= {"R": f"{side >> level}x{side >> level}", "H": f"{side}x{side}"}
        return ("" if family == "EDM2" else "model.") + published.format(**groups)
    raise ValueError(f"{own}: the published {family} has no such tensor")
