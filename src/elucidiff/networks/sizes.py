"""Which network for which data: sizes that a laptop can train, and the published ones from 33 pixels up."""

from __future__ import annotations

import math
from typing import Any

from .ddpmpp import DDPMPP
from .mlp import MLP
from .network import Network, check_shape


def for_shape(shape: tuple[int, ...], **overrides: Any) -> Network:
    """The configuration for samples of a shape; fields can be overridden by name.

    Images (C, H, W) get a DDPM++ by their larger side, all other shapes an MLP:

        up to  8    32 channels, multipliers 1, 2,       1 block a level,  attention at side / 2
        up to 16    32 channels, multipliers 1, 2, 2,    1 block a level,  attention at side / 2
        up to 32    64 channels, multipliers 1, 2, 2,    2 blocks a level, attention at side / 2
        up to 64   128 channels, multipliers 1, 2, 2, 2, 4 blocks a level, attention at side / 4  (FFHQ of [EDM])
        beyond      as up to 64, with one more level of multiplier 1 for each doubling

    An image whose sides cannot be halved so often gets fewer levels, the last ones of the list, and attention
    at most at 32 pixels a side. On 2 CPU cores the network for 28 x 28 trains on 30 images a second, one
    with 32 channels on 110; a GPU has room for the published 128.
    """
    check_shape(shape)
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
