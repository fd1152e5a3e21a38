"""The U of a U-Net: levels that halve and double, whatever their blocks are made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..component import require
from .network import check_shape, run

AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


@dataclass(frozen=True)
class Plan:
    """Channels and attention of every level, the highest resolution first; shared by all U-Nets.

    The decoder's first block has attention whatever the plan says, its second never.
    """

    stem: int  # channels of the first convolution
    widths: tuple[int, ...]  # channels of each level
    blocks: int  # a level in the encoder; the decoder has one more
    attends: tuple[bool, ...]  # which levels have attention
    in_every_decoder_block: bool  # or only in the last one of such a level

    @property
    def skips(self) -> list[int]:
        """Channels of all outputs of the encoder, in order."""
        downs = [[], *([w] for w in self.widths[:-1])]  # a down block keeps the channels of the level above
        return [self.stem, *itertools.chain(*(d + [w] * self.blocks for d, w in zip(downs, self.widths, strict=True)))]


# Makes a block of so many channels in and out: make(c_in, c_out, resample=, attention=).
Make = Callable[..., nn.Module]


class EncoderLevel(nn.Module):
    """The blocks at one resolution, after the block that halves it (none at the first level).

    `aux`, where the network has one, adds to the down block's output what comes down another way:
    (x, image) -> (x, image), see `unet`.
    """

    def __init__(
        self, down: nn.Module | None, blocks: list[nn.Module], *, aux: nn.Module | None, checkpointed: bool
    ) -> None:
        super().__init__()
        self.down = down
        self.aux = aux
        self.blocks = nn.ModuleList(blocks)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor, emb: Tensor, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """The outputs of all blocks, each of which becomes a skip, and the image for the next level."""
        outputs = []
        if self.down is not None:
            x = run(self.down, x, emb, checkpointed=self.checkpointed)
            if self.aux is not None:
                x, image = self.aux(x, image)
            outputs.append(x)
        for block in self.blocks:
            x = run(block, x, emb, checkpointed=self.checkpointed)
            outputs.append(x)
        return outputs, image


class DecoderLevel(nn.Module):
    """The blocks at one resolution, after the block that doubles it (none at the lowest level)."""

    def __init__(
        self,
        up: nn.Module | None,
        blocks: list[nn.Module],
        *,
        join: Callable[[Tensor, Tensor], Tensor],
        checkpointed: bool,
    ) -> None:
        super().__init__()
        self.up = up
        self.blocks = nn.ModuleList(blocks)
        self.join = join
        self.checkpointed = checkpointed

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """The last block's output. Takes its skips from the end of the list, so that they are freed."""
        if self.up is not None:
            x = run(self.up, x, emb, checkpointed=self.checkpointed)
        for block in self.blocks:
            x = run(self._joined(block), x, skips.pop(), emb, checkpointed=self.checkpointed)
        return x

    def _joined(self, block: nn.Module) -> Callable[..., Tensor]:
        return lambda x, skip, emb: block(self.join(x, skip), emb)


def encoder(
    plan: Plan, make: Make, down: Callable[[], nn.Module], *, paths: Sequence[nn.Module] = (), checkpointed: bool
) -> nn.ModuleList:
    """The encoder's levels. `paths` are the auxiliary paths of all levels but the first, where there are any."""
    levels = nn.ModuleList()
    c = plan.stem
    for width, attention in zip(plan.widths, plan.attends, strict=True):
        lower = len(levels) > 0
        halve = make(c, c, resample=down()) if lower else None
        aux = paths[len(levels) - 1] if lower and paths else None
        blocks = []
        for _ in range(plan.blocks):
            blocks.append(make(c, width, attention=attention))
            c = width
        levels.append(EncoderLevel(halve, blocks, aux=aux, checkpointed=checkpointed))
    return levels


def middle(plan: Plan, make: Make) -> nn.ModuleList:
    """The two blocks at the lowest resolution with which the decoder begins."""
    c = plan.widths[-1]
    return nn.ModuleList([make(c, c, attention=True), make(c, c)])


def decoder(
    plan: Plan,
    make: Make,
    up: Callable[[], nn.Module],
    *,
    join: Callable[[Tensor, Tensor], Tensor],
    checkpointed: bool,
) -> nn.ModuleList:
    """The decoder's levels, the lowest first. `join` puts the running x and a skip together along the channels."""
    levels = nn.ModuleList()
    skips = plan.skips
    c = plan.widths[-1]
    for width, attention in reversed(list(zip(plan.widths, plan.attends, strict=True))):
        double = make(c, c, resample=up()) if len(levels) else None
        blocks = []
        for j in range(plan.blocks + 1):
            attends = attention and (plan.in_every_decoder_block or j == plan.blocks)
            blocks.append(make(c + skips.pop(), width, attention=attends))
            c = width
        levels.append(DecoderLevel(double, blocks, join=join, checkpointed=checkpointed))
    return levels


def attending(shape: tuple[int, ...], levels: int, resolutions: tuple[int, ...]) -> tuple[bool, ...]:
    """Which levels of a network for (C, *size) attend: those whose larger side has a listed number of pixels."""
    return tuple(max(shape[1:]) >> i in resolutions for i in range(levels))


def check_sizes(channels: int, multipliers: tuple[int, ...], blocks: int, multiple: int = 4) -> None:
    """Raise ValueError where a size that all U-Nets have is out of its range."""
    wanted = ", ".join(str(multiple * i) for i in (1, 2, 3))
    require(channels > 0 and channels % multiple == 0, f"channels: got {channels}; expected {wanted}, ...")
    require(
        len(multipliers) > 0 and min(multipliers) > 0,
        f"multipliers: got {multipliers}; expected one positive number a level",
    )
    require(blocks > 0, f"blocks: got {blocks}; expected 1 or more")


def check_image_shape(kind: str, shape: tuple[int, ...], label_dim: int, halvings: int) -> None:
    """Raise ValueError for shapes that are not signals, images or volumes, or do not halve often enough."""
    check_shape(shape, label_dim)
    if len(shape) - 1 not in AXES:
        raise ValueError(
            f"shape: got {shape}; {kind} takes signals (channels, length), images (channels, height, width) or "
            "volumes (channels, depth, height, width); use mlp instead"
        )
    check_sides(shape[1:], halvings)


def check_images(x: Tensor, shape: tuple[int, ...], halvings: int) -> None:
    """Raise ValueError unless x (B, C, *size) suits a network built for (C, *size'); the size may differ."""
    if x.ndim != len(shape) + 1 or x.shape[1] != shape[0]:
        axes = ", ".join(AXES[len(shape) - 1])
        raise ValueError(f"x: got shape {tuple(x.shape)}; this network takes (batch, {shape[0]}, {axes})")
    check_sides(tuple(x.shape[2:]), halvings)


def check_sides(sides: tuple[int, ...], halvings: int) -> None:
    """Raise ValueError unless an image can be halved so often, saying which sizes could."""
    factor = 2**halvings
    if any(side % factor for side in sides):
        fit = " x ".join(str(math.ceil(side / factor) * factor) for side in sides)
        raise ValueError(
            f"image of {' x '.join(map(str, sides))}: {halvings} halvings need sides that are multiples of {factor}; "
            f"pad it to {fit}, or use fewer levels (multipliers)"
        )
