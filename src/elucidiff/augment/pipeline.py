"""The pipeline: which transforms, how often; drawing their parameters, telling them, applying them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..component import Value, require
from ..errors import unknown
from ..seeds import Stream, keyed_uniform
from .colour import Brightness, Colour, Contrast, Hue, LumaFlip, Saturation
from .geometric import Anisotropic, Geometric, Rotation, Scale, Translation
from .pixels import Pixels, Rotate90, Shift, XFlip, YFlip, ZFlip
from .resample import warp
from .transform import Transform

# Nine label entries, in the order of the published models (EDM paper, Table 6).
EDM: tuple[Transform, ...] = (XFlip(), YFlip(), Scale(), Rotation(), Anisotropic(), Translation())
# All of Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", for colour images.
FULL: tuple[Transform, ...] = (
    XFlip(), YFlip(), Rotate90(), Shift(), Scale(), Rotation(), Anisotropic(), Translation(),
    Brightness(), Contrast(), LumaFlip(), Hue(), Saturation(),
)  # fmt: skip

Parameters = dict[str, Tensor]  # by kind, (B, width) float64; 0 where a transform is not applied


class Augment(Value):
    """Non-leaky augmentation: the network is told what was done to a sample, and at sampling that nothing was.

        x', labels = augment(x, generator)

    transforms: in their order; moves of pixels first, then of positions (together one resampling), then colours.
    p: the chance of each transform that has none of its own (x-flips have: always drawn, half of them flip).
    dims: the spatial axes of the data, 1 (signals), 2 (images) or 3 (volumes). Raises ValueError for transforms that
    come twice, out of order, or are not defined for so many axes. EDM paper, appendix F.2.
    """

    transforms: tuple[Transform, ...] = EDM
    p: float = 0.12
    dims: int = 2

    def validate(self) -> None:
        """Raise ValueError where the pipeline makes no sense."""
        require(0 <= self.p <= 1, f"augment.p: got {self.p}; expected a chance in [0, 1], such as 0.12")
        require(self.dims in (1, 2, 3), f"augment.dims: got {self.dims}; expected 1, 2 or 3 spatial axes")
        require(len(self.transforms) > 0, "augment.transforms: got none; expected at least one, or no augmentation")
        kinds = [t.kind for t in self.transforms]
        require(len({*kinds}) == len(kinds), f"augment.transforms: got {', '.join(kinds)}; each may come once")
        for t in self.transforms:
            require(
                self.dims in t.dims,
                f"augment: {t.kind} is not defined for {self.dims} spatial axes, only {' or '.join(map(str, t.dims))}; "
                "ed.augment.for_shape(shape) chooses what is",
            )
        ordered = sorted(self.transforms, key=lambda t: t.stage)
        require(
            [t.kind for t in ordered] == kinds,
            f"augment.transforms: got {', '.join(kinds)}; moves of pixels come first, then of positions, then colours: "
            + ", ".join(t.kind for t in ordered),
        )

    @property
    def label_dim(self) -> int:
        """Entries of the augment labels, the network's augment_dim."""
        return sum(t.entries(self.dims) for t in self.transforms)

    def check(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless samples of a shape (C, *size) can be augmented."""
        require(
            len(shape) == self.dims + 1,
            f"augment: got samples of shape {tuple(shape)}; expected channels and {self.dims} spatial axes",
        )
        for t in self.transforms:
            t.check(tuple(shape))

    def __call__(
        self, x: Tensor, generator: torch.Generator | None = None, *, parameters: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples x (B, C, *size) transformed, and their augment labels (B, label_dim), dtype and device of x.

        Parameters are drawn from a CPU generator (a freshly seeded one when None) unless they are given, by kind; those
        left out are 0. `draw` gives parameters that are a function of (seed, step, sample).
        """
        require(generator is None or parameters is None, "augment: got a generator and parameters; give one of them")
        if parameters is None:
            if generator is None:
                generator = torch.Generator()
                generator.seed()
            parameters = self.from_uniform(torch.rand(len(x), self.numbers, generator=generator, dtype=torch.float64))
        parameters = self._complete(parameters, len(x))
        return self._applied(x, parameters), self._labels(parameters).to(x.device, x.dtype)

    def draw(self, seed: int, step: int, rows: Sequence[int]) -> Parameters:
        """Parameters of samples `rows` of a step: row j depends on (seed, step, rows[j]) alone, whatever the batch."""
        return self.from_uniform(keyed_uniform(seed, Stream.AUGMENT, step, rows, (self.numbers,)))

    def labels(self, parameters: Mapping[str, Any], n: int) -> Tensor:
        """The augment labels (n, label_dim) float64 of parameters by kind; those left out are 0."""
        return self._labels(self._complete(parameters, n))

    @property
    def numbers(self) -> int:
        """How many uniform numbers the parameters of a sample are made of; for each, one decides whether it is done."""
        return sum(1 + t.numbers(self.dims) for t in self.transforms)

    def from_uniform(self, u: Tensor) -> Parameters:
        """The parameters that uniform numbers u (B, numbers) float64 in [0, 1) stand for."""
        counts = [1 + t.numbers(self.dims) for t in self.transforms]
        drawn = {}
        for t, part in zip(self.transforms, u.split(counts, dim=1), strict=True):
            applied = part[:, :1] < (self.p if t.p is None else t.p)
            drawn[t.kind] = torch.where(applied, t.parameters(part[:, 1:]), 0.0)
        return drawn

    def _labels(self, parameters: Parameters) -> Tensor:
        return torch.cat([t.labels(parameters[t.kind]) for t in self.transforms], dim=1)

    def _complete(self, given: Mapping[str, Any], n: int) -> Parameters:
        """All parameters, checked, on the CPU in float64."""
        widths = {t.kind: t.width(self.dims) for t in self.transforms}
        for kind in given:
            require(kind in widths, unknown("transform of this pipeline", kind, widths))
        whole = {}
        for kind, width in widths.items():
            w = torch.as_tensor(given.get(kind, torch.zeros(n, width)), dtype=torch.float64, device="cpu")
            w = w[:, None] if w.ndim == 1 and width == 1 else w
            require(
                tuple(w.shape) == (n, width),
                f"parameters of {kind}: got shape {tuple(w.shape)}; expected {(n, width)}",
            )
            require(bool(w.isfinite().all()), f"parameters of {kind}: some are NaN or infinite")
            whole[kind] = w
        return whole

    def _applied(self, x: Tensor, parameters: Parameters) -> Tensor:
        require(x.is_floating_point(), f"augment: got {x.dtype}; expected floating point samples, such as in [-1, 1]")
        self.check(tuple(x.shape[1:]))
        for t in self.transforms:
            if isinstance(t, Pixels) and bool(parameters[t.kind].any()):
                x = t.move(x, parameters[t.kind].to(x.device, torch.promote_types(x.dtype, torch.float32)))
        return self._coloured(self._warped(x, parameters), parameters)

    def _warped(self, x: Tensor, parameters: Parameters) -> Tensor:
        """All moves of positions in one resampling, of the samples that have any: the identity changes nothing."""
        chosen = [t for t in self.transforms if isinstance(t, Geometric)]
        rows = _touched(chosen, parameters)
        if not len(rows):
            return x
        M = torch.eye(self.dims + 1, dtype=torch.float64)
        for t in chosen:
            M = M @ t.matrix(parameters[t.kind][rows], tuple(x.shape[2:]))
        at = rows.to(x.device)
        return x.index_copy(0, at, warp(x[at], M))

    def _coloured(self, x: Tensor, parameters: Parameters) -> Tensor:
        """All maps of colours in one."""
        chosen = [t for t in self.transforms if isinstance(t, Colour)]
        rows = _touched(chosen, parameters)
        if not len(rows):
            return x
        A = torch.eye(x.shape[1] + 1, dtype=torch.float64)
        for t in chosen:
            A = t.matrix(parameters[t.kind][rows], x.shape[1]) @ A
        at, A = rows.to(x.device), A.to(x.device, x.dtype)
        mapped = A[:, :-1, :-1] @ x[at].flatten(2) + A[:, :-1, -1:]
        return x.index_copy(0, at, mapped.reshape(-1, *x.shape[1:]))


def for_shape(shape: Sequence[int], p: float = 0.12) -> Augment:
    """The pipeline for samples of a shape (C, *size): EDM's six for images, flips and translation for others.

    Raises ValueError for shapes without spatial axes.
    """
    dims = len(shape) - 1
    require(1 <= dims <= 3, f"augment: got samples of shape {tuple(shape)}; expected channels and 1 to 3 spatial axes")
    if dims == 2:
        return Augment(EDM, p)
    flips = (XFlip(), YFlip(), ZFlip())
    return Augment((*(f for f in flips if dims in f.dims), Translation()), p, dims)


def named(names: str, shape: Sequence[int], p: float = 0.12) -> Augment:
    """A pipeline by name, "edm" or "full", or by the kinds of its transforms: "xflip,translation".

    "edm" takes the transforms that are defined for the shape; the kinds are put in order. Raises ValueError.
    """
    if names == "edm":
        return for_shape(shape, p)
    if names == "full":
        return Augment(FULL, p, len(shape) - 1)
    kinds = Transform.kinds()
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        require(name in kinds, unknown("transform or pipeline", name, [*kinds, "edm", "full"]))
    order = [t.kind for t in FULL] + ["zflip"]
    stage = {kind: (kinds[kind].stage, order.index(kind) if kind in order else len(order)) for kind in wanted}
    return Augment(tuple(kinds[kind]() for kind in sorted(wanted, key=stage.__getitem__)), p, len(shape) - 1)


def _touched(chosen: Sequence[Transform], parameters: Parameters) -> Tensor:
    """The rows that any of these transforms changes, (n,) int64 on the CPU."""
    if not chosen:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat([parameters[t.kind] for t in chosen], dim=1).any(1).nonzero()[:, 0]
