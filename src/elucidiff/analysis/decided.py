"""Where on the sigma axis samples are decided, beside where training puts its effort."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..component import require
from ..denoiser import as_denoiser, evaluation_mode
from ..objective import NoiseDistribution
from ..progress import bar
from ..seeds import Stream, keyed_normal
from .exact_path import ExactPath, Labels, Model, exact_path, geometric_levels

FEW = range(64)
FINE = 100_001


@dataclass(frozen=True)
class Decided:
    """How much of the samples is decided at L levels sigmas (L,), decreasing.

    decided (L,): the share of the samples' variance that the state at a level fixes, whatever noise follows.
    foreseen (L,): the share that D at a level already shows of the sample its own path ends in.
    density (L,): -d decided / d ln sigma. half, foreseen_half: the levels at which the shares pass a half; None where
    they do not within the levels, or have at the first. agreement (L,): the fraction of samples whose class has
    settled: D has the class of the sample here and at all lower levels; settled: the level at which half have. Both
    None without a classifier. variance: of the samples, per dimension. reference_error: RMS error of the paths at 0.
    """

    sigmas: Tensor
    decided: Tensor
    foreseen: Tensor
    density: Tensor
    half: float | None
    foreseen_half: float | None
    agreement: Tensor | None
    settled: float | None
    variance: float
    reference_error: float

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON data."""
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in self.__dict__.items()}


def decided(
    denoiser: Model,
    *,
    seeds: Sequence[int] = FEW,
    shape: Sequence[int] | None = None,
    labels: Labels = None,
    classify: Callable[[Tensor], Tensor] | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    levels: int = 36,
    branches: int = 4,
    progress: bool = False,
    **conditions: Any,
) -> Decided:
    """Where along the noise levels the samples of some seeds come to be what they are.

    The seeds' paths are solved exactly to their samples x_0. A state at level sigma leaves open what fresh noise
    from there on would decide otherwise: it has many branches, whose ends scatter around D. As x_0 + sigma n and x_0
    are a state and the end of one branch from it, the scatter needs no further solving,

        decided(sigma) = 1 - E |D(x_0 + sigma n; sigma) - x_0|^2 / E |x_0 - E x_0|^2,

    over `branches` draws of n a sample; it is the loss of Eq. 8 on the model's own samples. On its own path, without
    fresh noise, a state is not open at all, but D does not show it all yet:

        foreseen(sigma) = 1 - E |D(x(sigma); sigma) - x_0|^2 / E |x_0 - E x_0|^2.

    For N(0, c I) these are c / (c + sigma^2) and 1 - (1 - sqrt(c / (c + sigma^2)))^2. The density of decisions, the
    slope of `decided` over ln sigma, is where noise turns into content: a network is of use there, and training
    effort should lie there (EDM paper, Section 5: at lower levels little can be told from noise, at higher ones the
    answer is the mean). `training_density` gives the p(ln sigma) to compare. A model with classes begins with the
    share that the class decides by itself.

    classify: images (B, *) -> class indices (B,), to see when the class of D stops changing. Costs about
    levels (6 + branches) evaluations for all seeds at once. Raises ValueError as `sample` does, and for one seed.
    """
    denoiser = as_denoiser(denoiser)
    require(len(seeds) >= 2, f"seeds: got {len(seeds)}; expected at least two, whose samples differ")
    require(branches >= 1, f"branches: got {branches}; expected at least 1")
    sigmas = geometric_levels(denoiser, sigma_min, sigma_max, levels)
    path = exact_path(denoiser, sigmas, seeds=seeds, shape=shape, labels=labels, progress=progress, **conditions)
    x_0 = path.x[-1]
    variance = float(x_0.var(0).mean())
    require(variance > (1e-6 * float(sigmas[-1])) ** 2, "the samples are all the same: there is nothing to decide")
    scatter = _scatter(path, branches, progress)
    shown = (path.denoised - x_0).square().flatten(1).mean(1).cpu()
    share, foreseen = 1 - scatter / variance, 1 - shown / variance
    agreement = None if classify is None else _settled(classify, path)
    return Decided(
        sigmas=sigmas,
        decided=share,
        foreseen=foreseen,
        density=-torch.gradient(share, spacing=(sigmas.log(),))[0],
        half=crossing(sigmas, share),
        foreseen_half=crossing(sigmas, foreseen),
        agreement=agreement,
        settled=None if agreement is None else crossing(sigmas, agreement),
        variance=variance,
        reference_error=path.error,
    )


def _scatter(path: ExactPath, branches: int, progress: bool) -> Tensor:
    """E |D(x_0 + sigma n; sigma) - x_0|^2 per dimension at every level, (L,)."""
    x_0, found = path.x[-1], []
    rows = range(len(x_0))
    noise = [keyed_normal(k, Stream.NOISE, 0, rows, x_0.shape[1:]).to(x_0) for k in range(branches)]
    with torch.no_grad(), evaluation_mode(path.flow.denoiser), bar("branching", progress) as report:
        for sigma in path.sigmas.tolist():
            errors = [path.flow.denoise(x_0 + sigma * n, sigma) - x_0 for n in noise]
            found.append(torch.stack(errors).square().mean())
            report(len(found), len(path.sigmas))
    return torch.stack(found).cpu()


def _settled(classify: Callable[[Tensor], Tensor], path: ExactPath) -> Tensor:
    """The fraction of samples whose D has the class of the sample at a level and all below it, (L,)."""
    own = classify(path.x[-1])
    right = torch.stack([classify(D) == own for D in path.denoised])
    return right.flip(0).cumprod(0).flip(0).double().mean(1).cpu()


def crossing(sigmas: Tensor, share: Tensor, value: float = 0.5) -> float | None:
    """The highest level, linear in ln sigma, at which a share that grows as the levels fall reaches a value."""
    above = torch.nonzero(share >= value).flatten()
    if not len(above) or above[0] == 0:
        return None
    i = int(above[0])
    u, v = sigmas.log(), share
    part = (value - v[i - 1]) / (v[i] - v[i - 1])
    return math.exp(float(u[i - 1] + part * (u[i] - u[i - 1])))


def training_density(noise: NoiseDistribution, sigmas: Tensor) -> Tensor:
    """p(ln sigma) of a training noise distribution around levels, (L,): by counting finely spaced quantiles.

    The bins reach half-way to the neighbours, so a distribution over discrete levels has a density too.
    """
    u = (torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE
    drawn = noise.quantile(u).log()
    order = sigmas.argsort()
    centres = sigmas[order].log()
    middles = (centres[1:] + centres[:-1]) / 2
    edges = torch.cat([2 * centres[:1] - middles[:1], middles, 2 * centres[-1:] - middles[-1:]])
    counts = torch.histogram(drawn, edges).hist
    density = torch.empty_like(counts)
    density[order] = counts / FINE / edges.diff()
    return density
