"""The Inception-v3 graph of 5 December 2015, on whose features the FID is defined, and its published tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FormatError

SIDE = 299  # pixels a side that the network sees
LEVELS = (
    64,
    192,
    768,
    2048,
)  # features after the first and second max pool, before the auxiliary classifier, at the end
CLASSES = 1008
BN_EPS = 1e-3
UNUSED = ".num_batches_tracked"  # of batch norm in training; files that later versions of torch wrote have it

Kernel = int | tuple[int, int]
Step = tuple[int, Kernel | list[Kernel]]  # channels and kernel of a convolution; several kernels: side by side


class Unit(nn.Conv2d):
    """A convolution with its batch norm folded in, and ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """relu(w * x + b)."""
        return F.relu(super().forward(x), inplace=True)


class Mixed(nn.Module):
    """Branches (B, C, H, W) -> (B, C', H', W') side by side: chains of convolutions, and a pooled one at the end.

    A chain of one convolution has the name of the branch, of several the branch's with _1, _2, ...; where the last step
    has two kernels, the two are named _2a and _2b and both start from the step before. Stride 1 keeps the size, with
    zeros of half the kernel around, by axis; where `halve` is set, the last step of each chain and the pool have stride
    2 and no padding.
    """

    def __init__(
        self,
        before: int,
        chains: Mapping[str, Sequence[Step]],
        pool: nn.Module,
        pooled: int = 0,
        halve: bool = False,
    ) -> None:
        super().__init__()
        self.plan: list[list[list[str]]] = []  # the names of the units: by chain, by step, side by side
        self.width = pooled or before
        for branch, chain in chains.items():
            c, names = before, []
            for k, (width, kernels) in enumerate(chain, 1):
                stride = 2 if halve and k == len(chain) else 1
                several = kernels if isinstance(kernels, list) else [kernels]
                suffixes = ["ab"[i] if len(several) > 1 else "" for i in range(len(several))]
                names.append([f"{branch}_{k}{s}" if len(chain) > 1 else branch for s in suffixes])
                for name, kernel in zip(names[-1], several, strict=True):
                    self.add_module(name, _unit(c, width, kernel, stride))
                c = width
            self.plan.append(names)
            self.width += c * len(names[-1])
        self.pool = pool
        self.branch_pool = _unit(before, pooled, 1) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The branches in the order of their definition, the pooled one last, along the channels."""
        found = []
        for steps in self.plan:
            h = [x]
            for names in steps:
                h = [self.get_submodule(name)(h[0]) for name in names]
            found += h
        return torch.cat([*found, self.branch_pool(self.pool(x))], dim=1)


def _unit(before: int, after: int, kernel: Kernel, stride: int = 1, padding: tuple[int, int] | None = None) -> Unit:
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    half = (rows // 2, columns // 2) if stride == 1 else (0, 0)
    return Unit(before, after, (rows, columns), stride, half if padding is None else padding)


def _average() -> nn.Module:
    """The mean of the 3x3 neighbours that are in the picture: zeros beyond it do not count."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _at_35(before: int, pooled: int) -> Mixed:
    chains: dict[str, list[Step]] = {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
    }
    return Mixed(before, chains, _average(), pooled)


def _to_17() -> Mixed:
    chains: dict[str, list[Step]] = {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}
    return Mixed(288, chains, nn.MaxPool2d(3, 2), halve=True)


def _at_17(c: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    chains: dict[str, list[Step]] = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(c, 1), (c, row), (192, column)],
        "branch7x7dbl": [(c, 1), (c, column), (c, row), (c, column), (192, row)],
    }
    return Mixed(768, chains, _average(), 192)


def _to_8() -> Mixed:
    chains: dict[str, list[Step]] = {
        "branch3x3": [(192, 1), (320, 3)],
        "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)],
    }
    return Mixed(768, chains, nn.MaxPool2d(3, 2), halve=True)


def _at_8(before: int, pool: nn.Module) -> Mixed:
    fork: list[Kernel] = [(1, 3), (3, 1)]
    chains: dict[str, list[Step]] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), (384, fork)],
        "branch3x3dbl": [(448, 1), (384, 3), (384, fork)],
    }
    return Mixed(before, chains, pool, 192)


class InceptionNetwork(nn.Module):
    """Images (B, 3, 299, 299) of levels from 0 to 255 -> features, averaged over space (Szegedy et al. 2016).

    As the graph of 2015 has it: the average pools leave the padding out, and the last block pools the maximum where
    the paper and the later networks average.
    """

    def __init__(self) -> None:
        super().__init__()
        no = (0, 0)
        stages: list[dict[str, nn.Module]] = [
            {
                "Conv2d_1a_3x3": _unit(3, 32, 3, stride=2),
                "Conv2d_2a_3x3": _unit(32, 32, 3, padding=no),
                "Conv2d_2b_3x3": _unit(32, 64, 3),
                "pool": nn.MaxPool2d(3, 2),
            },
            {
                "Conv2d_3b_1x1": _unit(64, 80, 1),
                "Conv2d_4a_3x3": _unit(80, 192, 3, padding=no),
                "pool": nn.MaxPool2d(3, 2),
            },
            {
                "Mixed_5b": _at_35(192, 32),
                "Mixed_5c": _at_35(256, 64),
                "Mixed_5d": _at_35(288, 64),
                "Mixed_6a": _to_17(),
                "Mixed_6b": _at_17(128),
                "Mixed_6c": _at_17(160),
                "Mixed_6d": _at_17(160),
                "Mixed_6e": _at_17(192),
            },
            {
                "Mixed_7a": _to_8(),
                "Mixed_7b": _at_8(1280, _average()),
                "Mixed_7c": _at_8(2048, nn.MaxPool2d(3, stride=1, padding=1)),
            },
        ]
        self.stages = nn.ModuleDict(
            {str(level): nn.Sequential(OrderedDict(stage)) for level, stage in zip(LEVELS, stages, strict=True)}
        )

    def forward(self, images: Tensor, level: int = LEVELS[-1]) -> Tensor:
        """The features (B, level), one of LEVELS; nothing is computed beyond it."""
        x = (images - 128) / 128
        for name, stage in self.stages.items():
            x = stage(x)
            if int(name) == level:
                break
        return x.mean((2, 3))

    def units(self) -> dict[str, Unit]:
        """The 94 convolutions by their published names."""
        named = self.stages.named_modules()
        return {name.split(".", 1)[1]: unit for name, unit in named if isinstance(unit, Unit)}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the 472 published tensors: convolutions with batch norm, and the classifier at the end."""
    with torch.device("meta"):
        units = InceptionNetwork().units()
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, LEVELS[-1]), "fc.bias": (CLASSES,)}
    for name, unit in units.items():
        shapes[f"{name}.conv.weight"] = tuple(unit.weight.shape)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (unit.out_channels,)
    return shapes


def network_of(published: Mapping[str, Tensor], source: str) -> InceptionNetwork:
    """The network of published tensors, in evaluation mode, float32 and channels-last order.

    The batch norms are folded into the convolutions, in float64: w gamma / sqrt(var + eps) and beta - mean gamma /
    sqrt(var + eps). Raises FormatError naming the source and the first tensor that is missing, superfluous, of
    another shape or not finite.
    """
    tensors = {name: t for name, t in published.items() if not name.endswith(UNUSED)}
    _check_tensors(tensors, source)
    with torch.device("meta"):
        network = InceptionNetwork()
    for name, unit in network.units().items():
        gamma, beta, mean, var = (
            tensors[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / (var + BN_EPS).sqrt()
        weight = (tensors[f"{name}.conv.weight"].double() * scale[:, None, None, None]).float()
        unit.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        unit.bias = nn.Parameter((beta - mean * scale).float(), requires_grad=False)
    return network.eval()


def _check_tensors(tensors: Mapping[str, Tensor], source: str) -> None:
    shapes = published_shapes()
    wrong = [f"it lacks {name}" for name in shapes if name not in tensors]
    wrong += [f"{name} does not belong to it" for name in tensors if name not in shapes]
    for name in shapes.keys() & tensors.keys():
        tensor = tensors[name]
        if tuple(tensor.shape) != shapes[name]:
            wrong.append(f"{name} is {tuple(tensor.shape)} where it is {shapes[name]}")
        elif not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            wrong.append(f"{name} holds other than finite floating numbers")
    if wrong:
        raise FormatError(f"{source}: not the Inception-v3 of 2015, the FID's: {min(wrong)} ({len(wrong)} differences)")


def resized(images: Tensor, side: int = SIDE) -> Tensor:
    """Images (B, C, H, W) as (B, C, side, side): linear along each axis, without antialiasing.

    Pixel i is read at position i n / side of n (not at the centres of the pixels), and from the last pixel beyond it:
    as the graph of 2015 begins, so that small pictures are seen as it saw them.
    """
    for axis in (3, 2):
        n = images.shape[axis]
        position = torch.arange(side, dtype=torch.float64) * (n / side)
        low = position.floor().long().clamp(max=n - 1)  # n / side is rounded: a product may come out as n
        fraction = (position - low).to(images).unflatten(0, (-1, *[1] * (3 - axis)))
        low, high = low.to(images.device), (low + 1).clamp(max=n - 1).to(images.device)
        images = torch.lerp(images.index_select(axis, low), images.index_select(axis, high), fraction)
    return images
