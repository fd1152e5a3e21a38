"""Conditions that are images: what is concatenated to the network's input, made from the data or brought by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .component import Component, require

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
FILTERS = ("nearest", "bilinear")


class Conditioning(Component):
    """Which image c (B, K, *size) the network sees beside the noisy sample x (B, C, *size): D(x; sigma, c).

    Training makes c from the clean sample (`of`), sampling is given it (`prepare`). A new one defines `channels`, `of`
    and, where it can be given in another form, `_converted`.
    """

    role: ClassVar[str] = "conditioning"
    from_data: ClassVar[bool] = True  # whether `of` makes it from the sample

    def channels(self, shape: Sequence[int]) -> int:
        """K, for samples of a shape (C, *size). Raises ValueError for samples that have no such condition."""
        raise NotImplementedError(f"{type(self).__name__} must define channels(shape)")

    def of(self, y: Tensor) -> Tensor:
        """The condition (B, K, *size) of clean samples y (B, C, *size), in their dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define of(y)")

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (K, *size) of the condition of one sample of a shape (C, *size)."""
        return (self.channels(shape), *shape[1:])

    def prepare(self, given: Tensor, shape: Sequence[int]) -> Tensor:
        """What a person has, as the network sees it: (B, K, *size), for samples of a shape (C, *size).

        A tensor (B, K, *size) stays as it is; what else is taken says the class. Without a batch axis it becomes
        (1, K, *size). Raises ValueError for other shapes, TypeError for anything but a tensor of floating numbers.
        """
        if not isinstance(given, Tensor) or not given.is_floating_point():
            got = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(
                f"condition: got {got}; expected a floating tensor {self.accepted(shape)}, in the range of the data "
                "(images: [-1, 1])"
            )
        given = given[None] if given.ndim == len(shape) else given
        own = self.shape(shape)
        ready = given if tuple(given.shape[1:]) == own else self._converted(given, tuple(shape))
        require(
            ready is not None,
            f"condition: got shape {tuple(given.shape)} for {self}; expected {self.accepted(shape)}",
        )
        return ready  # type: ignore[return-value]  # None was refused

    def accepted(self, shape: Sequence[int]) -> str:
        """The shapes that `prepare` takes, in words."""
        return f"(B, {self._sizes(shape)})"

    def _sizes(self, shape: Sequence[int]) -> str:
        return ", ".join(map(str, self.shape(shape)))

    def _converted(self, given: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """(B, K, *size) of what is given in another form; None for a shape that is not taken."""
        return None


class LowRes(Conditioning, kind="lowres"):
    """Super-resolution: the means of blocks of `factor` pixels a side, enlarged to the size of the sample again.

    `filter` enlarges: "nearest" repeats each mean, "bilinear" interpolates between the centres of blocks, beyond which
    the border goes on (as bilinear interpolation without aligned corners). For signals, images and volumes, whose
    sides `factor` divides. `prepare` also takes a low-resolution image (B, C, *size / factor), and enlarges it; what
    has the full size is taken as enlarged already (`of` gives that of sharp images).
    """

    formula: ClassVar[str] = "c = enlarge(mean over blocks of y)"
    factor: int = 4
    filter: str = "bilinear"

    def validate(self) -> None:
        """Raise ValueError for a factor below 2 and an unknown filter."""
        require(self.factor >= 2, f"LowRes.factor: got {self.factor}; expected 2 or more, such as 4")
        require(self.filter in FILTERS, f"LowRes.filter: got {self.filter!r}; expected one of {', '.join(FILTERS)}")

    def channels(self, shape: Sequence[int]) -> int:
        """C. Raises ValueError for samples without sides, and for sides that `factor` does not divide."""
        self._small(shape)
        return shape[0]

    def of(self, y: Tensor) -> Tensor:
        """The enlarged means of y."""
        self._small(y.shape[1:])
        return self._enlarged(self.reduced(y))

    def reduced(self, y: Tensor) -> Tensor:
        """The low-resolution image (B, C, *size / factor): means of blocks."""
        for axis in range(2, y.ndim):
            # one addition after the other: a reduction may take another order for another batch size
            first, *others = y.unflatten(axis, (-1, self.factor)).unbind(axis + 1)
            y = sum(others, first) / self.factor
        return y

    def accepted(self, shape: Sequence[int]) -> str:
        """The two shapes that `prepare` takes."""
        small = ", ".join(map(str, self._small(shape)))
        return f"low-resolution images (B, {small}), or enlarged ones (B, {self._sizes(shape)})"

    def _converted(self, given: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        return self._enlarged(given) if tuple(given.shape[1:]) == self._small(shape) else None

    def _small(self, shape: Sequence[int]) -> tuple[int, ...]:
        require(
            len(shape) >= 2 and all(n % self.factor == 0 for n in shape[1:]),
            f"LowRes.factor: {self.factor} does not divide the sides of samples of shape {tuple(shape)}; "
            "expected (channels, *sides) with multiples of it",
        )
        return (shape[0], *(n // self.factor for n in shape[1:]))

    def _enlarged(self, small: Tensor) -> Tensor:
        for axis in range(2, small.ndim):
            if self.filter == "nearest":
                small = small.repeat_interleave(self.factor, axis)
            else:
                small = _interpolated(small, axis, self.factor)
        return small


class Grey(Conditioning, kind="grey"):
    """Colourisation: the luma of colour images in red, green, blue, Y = 0.299 R + 0.587 G + 0.114 B.

    `prepare` also takes colour images (B, 3, *size), of which it sees the luma alone.
    """

    formula: ClassVar[str] = "c = 0.299 R + 0.587 G + 0.114 B"

    def channels(self, shape: Sequence[int]) -> int:
        """1. Raises ValueError for samples that do not have three channels."""
        require(
            len(shape) >= 2 and shape[0] == 3,
            f"conditioning grey: got samples of shape {tuple(shape)}; expected colour images (3, *size)",
        )
        return 1

    def of(self, y: Tensor) -> Tensor:
        """The luma of y (B, 3, *size): (B, 1, *size)."""
        self.channels(y.shape[1:])
        red, green, blue = y.split(1, dim=1)
        return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue

    def accepted(self, shape: Sequence[int]) -> str:
        """Grey and colour images."""
        return f"grey images (B, {self._sizes(shape)}), or colour images of that size"

    def _converted(self, given: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        return self.of(given) if tuple(given.shape[1:]) == shape else None


class Paired(Conditioning, kind="paired"):
    """Image to image: the data bring an array of K channels beside each sample, of its size.

    Samples that are points (C,) have conditions (K,): numbers beside them.
    """

    formula: ClassVar[str] = "c of the data"
    from_data: ClassVar[bool] = False
    K: int = 1

    def validate(self) -> None:
        """Raise ValueError for less than one channel."""
        require(self.K >= 1, f"Paired.K: got {self.K}; expected the channels of the data's conditions, 1 or more")

    def channels(self, shape: Sequence[int]) -> int:
        """K."""
        return self.K

    def of(self, y: Tensor) -> Tensor:
        """Raises ValueError: a sample does not tell what it is paired with."""
        raise ValueError("conditioning paired: a condition cannot be made from the samples; the data bring their own")


def checked_condition(
    conditioning: Conditioning | None, given: Tensor | None, shape: tuple[int, ...], batch: int
) -> Tensor | None:
    """The condition (B, K, *size) of a batch of samples of a shape, from one a sample or one for all; None without.

    Raises ValueError for a condition that is missing, does not fit, or is given to a model that has none.
    """
    if conditioning is None:
        if given is not None:
            raise ValueError("condition: got one for a model that was trained without; leave it out")
        return None
    if given is None:
        raise ValueError(
            f"condition= is needed: the model is conditioned by {conditioning}; expected {conditioning.accepted(shape)}"
        )
    c = conditioning.prepare(given, shape)
    if len(c) not in (1, batch):
        raise ValueError(f"condition: got {len(c)} for {batch} samples; expected one for each, or one for all")
    return c.expand(batch, *c.shape[1:])


def _interpolated(x: Tensor, axis: int, factor: int) -> Tensor:
    """Every value of x along an axis replaced by `factor`, on straight lines between the centres."""
    n = x.shape[axis]
    at = (torch.arange(n * factor, dtype=torch.float64) + 0.5) / factor - 0.5
    at = at.clamp(0, n - 1)
    left = at.floor().long()
    right = (left + 1).clamp(max=n - 1)
    w = (at - left).to(x).reshape(-1, *[1] * (x.ndim - 1 - axis))
    left, right = left.to(x.device), right.to(x.device)
    return (1 - w) * x.index_select(axis, left) + w * x.index_select(axis, right)
