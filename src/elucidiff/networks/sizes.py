"""Which network for which data: sizes that a laptop can train, and the published ones by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..errors import unknown
from .adm import ADM
from .ddpmpp import DDPMPP
from .dit import DiT
from .edm2 import EDM2
from .mlp import MLP
from .ncsnpp import NCSNPP
from .network import Network, check_shape

_EDM2 = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
_DIT = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}

# The published sizes. -cifar10: 32 x 32, dropout 0.13; -64: FFHQ, AFHQv2 at 64 x 64, dropout 0.05 (AFHQv2 has 0.25);
# both with nine augment labels. EDM2's are for latents of 64 x 64 x 4, dropout 0.10 from M on. DiT's have patches of 2.
PRESETS: Mapping[str, Network] = MappingProxyType(
    {
        "ddpmpp-cifar10": DDPMPP(dropout=0.13, augment_dim=9),
        "ddpmpp-64": DDPMPP(multipliers=(1, 2, 2, 2), dropout=0.05, augment_dim=9),
        "ncsnpp-cifar10": NCSNPP(dropout=0.13, augment_dim=9),
        "ncsnpp-64": NCSNPP(multipliers=(1, 2, 2, 2), dropout=0.05, augment_dim=9),
        "adm-imagenet64": ADM(),
        **{f"edm2-{k}": EDM2(channels=c, dropout=0.0 if c < 256 else 0.1) for k, c in _EDM2.items()},
        **{f"dit-{k}": DiT(width=w, depth=d, heads=h) for k, (w, d, h) in _DIT.items()},
    }
)


def preset(name: str, **overrides: Any) -> Network:
    """A published size by name, e.g. "edm2-xs"; fields can be overridden. Raises ValueError naming all of them."""
    if name not in PRESETS:
        raise ValueError(unknown("network preset", name, PRESETS))
    return PRESETS[name].replace(**overrides)


def for_shape(shape: tuple[int, ...], **overrides: Any) -> Network:
    """The configuration for samples of a shape; fields can be overridden by name.

    Images (C, H, W) get a DDPM++ by their larger side:

        up to  8    32 channels, multipliers 1, 2,       1 block a level,  attention at side / 2
        up to 16    32 channels, multipliers 1, 2, 2,    1 block a level,  attention at side / 2
        up to 32    64 channels, multipliers 1, 2, 2,    2 blocks a level, attention at side / 2
        up to 64   128 channels, multipliers 1, 2, 2, 2, 4 blocks a level, attention at side / 4  (FFHQ of [EDM])
        beyond      as up to 64, with one more level of multiplier 1 for each doubling

    Signals (C, L) of 16 samples or more get the second of these along time where L can be halved twice, with
    attention up to 256 samples; all other shapes get an MLP.

    An image whose sides cannot be halved so often gets fewer levels, the last ones of the list, and attention
    at most at 32 pixels a side. On 2 CPU cores the network for 28 x 28 trains on 30 images a second, one
    with 32 channels on 110; a GPU has room for the published 128.
    """
    check_shape(shape)
    if len(shape) == 2 and shape[1] >= 16 and shape[1] % 4 == 0:
        attention = (shape[1] // 2,) if shape[1] <= 256 else ()
        signal = DDPMPP(channels=32, multipliers=(1, 2, 2), blocks=1, attention=attention)
        return signal.replace(**overrides)
    if len(shape) != 3:
        # Four times the entries, between 128 and 1024, a power of two.
        width = 2 ** math.ceil(math.log2(min(max(4 * math.prod(shape), 128), 1024)))
        return MLP(width=width).replace(**overrides)
    side = max(shape[1:])
    if side <= 8:
        network = DDPMPP(channels=32, multipliers=(1, 2), blocks=1)
    elif side <= 16:
        network = DDPMPP(channels=32, multipliers=(1, 2, 2), blocks=1)
    elif side <= 32:
        network = DDPMPP(channels=64, multipliers=(1, 2, 2), blocks=2)
    else:
        more = math.ceil(math.log2(side / 64))
        network = DDPMPP(multipliers=(1,) * max(more, 0) + (1, 2, 2, 2))
    halvings = min(_halvings(shape[1]), _halvings(shape[2]), len(network.multipliers) - 1)
    multipliers = network.multipliers[-1 - halvings :]
    # The paper attends at 16 x 16: the levels there are the second of 32, the third of 64.
    level = min(1 if side <= 32 else math.ceil(math.log2(side / 16)), halvings)
    attention = (side >> level,) if side >> level <= 32 else ()
    return network.replace(multipliers=multipliers, attention=attention).replace(**overrides)


def _halvings(side: int) -> int:
    """How often a side can be halved."""
    return (side & -side).bit_length() - 1
