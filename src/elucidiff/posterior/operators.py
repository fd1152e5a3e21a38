"""Linear measurements y = A x of samples: masks, blur, down-sampling, any function or matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..component import Component, require
from ..seeds import keyed_normal
from ..tensors import like, widest_dtype
from .conjugate import conjugate_gradients
from .regions import Box, Drawn, Region, known_part

NOISE = 102  # the stream of `keyed` that measurement noise comes from
# A mode damped to less than this is lost to the pseudo-inverse: it would blow the rounding of a float32 y up to 0.1.
NEGLIGIBLE = 1e-6


class Operator(Component):
    """A linear operator A from samples x (B, *) to measurements y (B, *), with its exact adjoint.

    A new operator defines `apply` and `transpose`; `solve` has a default by conjugate gradients.
    """

    role: ClassVar[str] = "operator"

    def apply(self, x: Tensor) -> Tensor:
        """A x, in the dtype of x."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(x)")

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y: <A x, y> = <x, A^T y>."""
        raise NotImplementedError(f"{type(self).__name__} must define transpose(y)")

    def solve(self, y: Tensor, damping: Tensor | float = 0.0) -> Tensor:
        """A^T (A A^T + damping I)^-1 y; the pseudo-inverse A^+ y for damping 0, a number or (B,)."""

        def normal(v: Tensor) -> tuple[Tensor, Tensor]:
            back = self.transpose(v)
            return self.apply(back) + like(damping, v) * v, back

        return conjugate_gradients(normal, y, iterations=2 * y[0].numel() + 8, tolerance=1e-13)[1]

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a measurement of samples of this shape. Raises ValueError when A does not fit them."""
        return tuple(shape)

    def count(self, shape: Sequence[int]) -> int:
        """How many numbers are measured of a sample of this shape."""
        return math.prod(self.output_shape(shape))

    def observed(self, y: Tensor) -> Tensor:
        """A measurement without what the operator does not see; y itself, but for masks."""
        return y

    def measure(self, x: Tensor, noise: float = 0.0, seed: int = 0) -> Tensor:
        """Y = A x + noise n: samples x (B, *) measured with Gaussian noise of a standard deviation.

        The noise of row k is a function of (seed, k), the same for every batch that holds row k.
        """
        require(0 <= noise < math.inf, f"noise: got {noise}; expected a standard deviation of at least 0")
        self.output_shape(x.shape[1:])  # raises where A does not fit
        y = self.apply(x)
        if noise == 0:
            return y
        n = keyed_normal(seed, NOISE, 0, range(len(y)), y.shape[1:]).to(y.device, y.dtype)
        return self.observed(y + noise * n)


class Mask(Operator, kind="mask"):
    """Known coordinates as they are, 0 elsewhere: y has the shape of x; what it holds elsewhere is not read.

    `region` says what is known; `Mask.of(known)` takes a boolean tensor.
    """

    formula: ClassVar[str] = "y = m x, m in {0, 1}"
    region: Region = Box()

    @classmethod
    def of(cls, known: Tensor) -> Mask:
        """The mask of a boolean tensor, True where known, shaped as a sample or as its spatial axes."""
        return cls(Drawn.of(known))

    def known(self, shape: Sequence[int]) -> Tensor:
        """True where samples of this shape are known, bool, of this shape."""
        return known_part(self.region, tuple(shape))

    def apply(self, x: Tensor) -> Tensor:
        # where, not a product: unknown coordinates may be marked by NaN
        return torch.where(self.known(x.shape[1:]).to(x.device), x, torch.zeros_like(x))

    def transpose(self, y: Tensor) -> Tensor:
        return self.apply(y)

    def observed(self, y: Tensor) -> Tensor:
        return self.apply(y)

    def solve(self, y: Tensor, damping: Tensor | float = 0.0) -> Tensor:
        return self.apply(y) / (1 + like(damping, y))

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        self.known(shape)
        return tuple(shape)

    def count(self, shape: Sequence[int]) -> int:
        return int(self.known(shape).sum())


class _Spatial(Operator):
    """What acts along the spatial axes: all after the channels, or the only one."""

    def _axes(self, ndim: int) -> range:
        """The spatial axes of a batch (B, C, *), or (B, n)."""
        return range(min(2, ndim - 1), ndim)


Boundary = Literal["reflect", "circular"]


class Blur(_Spatial, kind="blur"):
    """A Gaussian blur, separable: along each spatial axis with weights exp(-k^2 / (2 std^2)), normalised.

    `std` in pixels. Beyond its border an axis is mirrored with its last value repeated (dcba|abcd|dcba: "reflect"), or
    goes on at its other end ("circular"). Both make A symmetric, and keep constants. Held as one matrix of n x n
    for an axis of n pixels.
    """

    formula: ClassVar[str] = "y = (g * x), g_k = exp(-k²/(2 std²)) / Σ"
    std: float = 1.0
    boundary: Boundary = "reflect"

    def validate(self) -> None:
        require(0 < self.std < math.inf, f"Blur.std: got {self.std}; expected a number of pixels above 0")
        kinds = ("reflect", "circular")
        require(self.boundary in kinds, f"Blur.boundary: got {self.boundary!r}; expected one of {', '.join(kinds)}")

    def apply(self, x: Tensor) -> Tensor:
        for axis in self._axes(x.ndim):
            x = _along(x, axis, blur_matrix(x.shape[axis], self.std, self.boundary))
        return x

    def transpose(self, y: Tensor) -> Tensor:
        return self.apply(y)

    def solve(self, y: Tensor, damping: Tensor | float = 0.0) -> Tensor:
        axes = self._axes(y.ndim)
        strength = torch.ones((), dtype=y.dtype, device=y.device)
        for axis in axes:
            values, vectors = blur_modes(y.shape[axis], self.std, self.boundary)
            y = _along(y, axis, vectors.T)
            strength = strength[..., None] * values.to(y)
        total = strength**2 + like(damping, y)
        lost = (strength.abs() < NEGLIGIBLE) & (total <= NEGLIGIBLE**2)
        y = torch.where(lost, 0.0, strength / torch.where(lost, 1.0, total)) * y
        for axis in axes:
            y = _along(y, axis, blur_modes(y.shape[axis], self.std, self.boundary)[1])
        return y


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    return (x.movedim(axis, -1) @ matrix.to(x).T).movedim(-1, axis)


@functools.lru_cache(maxsize=64)
def blur_matrix(n: int, std: float, boundary: Boundary) -> Tensor:
    """The blur of an axis of n pixels as a symmetric matrix (n, n) float64; tails below exp(-32) are left out."""
    reach = math.ceil(8 * std)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-((offsets.double() / std) ** 2) / 2)
    source = torch.arange(n)[:, None] + offsets
    if boundary == "circular":
        source = source % n
    else:
        source = source % (2 * n)
        source = torch.minimum(source, 2 * n - 1 - source)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add_(1, source, (weights / weights.sum()).expand(n, -1))


@functools.lru_cache(maxsize=64)
def blur_modes(n: int, std: float, boundary: Boundary) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,) and eigenvectors (n, n), in columns, of that matrix."""
    values, vectors = torch.linalg.eigh(blur_matrix(n, std, boundary))
    return values, vectors


class Downsample(_Spatial, kind="downsample"):
    """Average pooling: the means of blocks of `factor` pixels along each spatial axis, which it must divide."""

    formula: ClassVar[str] = "y = mean over blocks"
    factor: int = 2

    def validate(self) -> None:
        require(self.factor >= 1, f"Downsample.factor: got {self.factor}; expected at least 1")

    def apply(self, x: Tensor) -> Tensor:
        for axis in self._axes(x.ndim):
            x = x.unflatten(axis, (-1, self.factor)).mean(axis + 1)
        return x

    def transpose(self, y: Tensor) -> Tensor:
        return self._spread(y) / self.factor ** len(self._axes(y.ndim))

    def solve(self, y: Tensor, damping: Tensor | float = 0.0) -> Tensor:
        # the rows of A are orthogonal, each of square norm 1 / factor^axes
        return self._spread(y) / (1 + like(damping, y) * self.factor ** len(self._axes(y.ndim)))

    def _spread(self, y: Tensor) -> Tensor:
        for axis in self._axes(y.ndim):
            y = y.repeat_interleave(self.factor, axis)
        return y

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        axes = self._axes(len(shape) + 1)
        require(
            all(shape[axis - 1] % self.factor == 0 for axis in axes),
            f"Downsample.factor: {self.factor} does not divide the spatial axes of samples of shape {tuple(shape)}",
        )
        return tuple(n // self.factor if i + 1 in axes else n for i, n in enumerate(shape))


class Linear(Operator, kind="linear"):
    """Any linear operator, from two functions of batches: `function` A x and `adjoint` A^T y.

    `Linear.of_matrix(A)` takes a matrix (m, d), for samples of d elements in any shape; its y is (B, m). Has no JSON
    form. `check(shape)` tests that the two functions are adjoint.
    """

    function: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]

    @classmethod
    def of_matrix(cls, matrix: Tensor, shape: Sequence[int] | None = None) -> Linear:
        """From a matrix (m, d); `shape` is that of a sample, (d,) when None. Raises ValueError for no fit."""
        require(matrix.ndim == 2, f"matrix: got shape {tuple(matrix.shape)}; expected (m, d)")
        sample = (matrix.shape[1],) if shape is None else tuple(shape)
        require(
            math.prod(sample) == matrix.shape[1],
            f"matrix: got {tuple(matrix.shape)}; samples of shape {sample} have {math.prod(sample)} elements",
        )

        def forwards(x: Tensor) -> Tensor:
            return x.flatten(1) @ matrix.to(x).T

        def backwards(y: Tensor) -> Tensor:
            return (y @ matrix.to(y)).reshape(-1, *sample)

        return cls(forwards, backwards)

    def apply(self, x: Tensor) -> Tensor:
        return self.function(x)

    def transpose(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.function(torch.zeros(1, *shape, dtype=widest_dtype("cpu"))).shape[1:])

    def check(self, shape: Sequence[int], seed: int = 0) -> None:
        """Raise ValueError unless <A x, y> = <x, A^T y> to 1e-9 for samples of this shape."""
        x = keyed_normal(seed, NOISE, 1, [0], shape).double()
        Ax = self.function(x)
        y = keyed_normal(seed, NOISE, 2, [0], Ax.shape[1:]).double()
        left, right = float((Ax * y).sum()), float((x * self.adjoint(y)).sum())
        require(
            abs(left - right) <= 1e-9 * float(Ax.norm() * y.norm()),
            f"Linear: <A x, y> = {left:.6g}, but <x, A^T y> = {right:.6g}; expected the adjoint of the function",
        )
