"""What denoisers make of noisy data along the noise levels (EDM paper, Figure 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..component import require
from ..denoiser import Denoiser, as_denoiser, evaluation_mode
from ..progress import bar
from ..seeds import Stream, keyed_normal
from .exact_path import Flow, Labels, Model, geometric_levels


@dataclass(frozen=True)
class DenoisedCurve:
    """One denoiser over L levels: how far D(y + sigma n; sigma) is from y, and what it looks like.

    error, nearest (L,): RMS per dimension of D - y, and of D less the data point nearest to it (None without data).
    outputs (L, K, *): D of the first K samples.
    """

    name: str
    error: Tensor
    nearest: Tensor | None
    outputs: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON data, without the outputs."""
        nearest = None if self.nearest is None else self.nearest.tolist()
        return {"name": self.name, "error": self.error.tolist(), "nearest": nearest}


@dataclass(frozen=True)
class Denoised:
    """Several denoisers on the same noisy data: levels sigmas (L,), increasing, and one curve a denoiser.

    clean (K, *), noisy (L, K, *): what `outputs` of the curves were made from. spread: the RMS of y around its mean.
    """

    sigmas: Tensor
    spread: float
    clean: Tensor
    noisy: Tensor
    curves: tuple[DenoisedCurve, ...]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON data, without images."""
        curves = [curve.to_dict() for curve in self.curves]
        return {"sigmas": self.sigmas.tolist(), "spread": self.spread, "curves": curves}


def denoised(
    denoisers: Mapping[str, Model],
    y: Tensor,
    *,
    labels: Labels = None,
    data: Tensor | None = None,
    sigmas: Tensor | None = None,
    keep: int = 4,
    seed: int = 0,
    progress: bool = False,
    **conditions: Any,
) -> Denoised:
    """D(y + sigma n; sigma) of every denoiser for y (B, *) at several levels, with the same n at all of them.

    The exact denoiser of the training data gives back y itself while the noise is small, and the mean of the data
    when it is large; between, it decides for a data point long before a network does, and a network that has learned
    to be exact has only learned its data by heart. `labels` go to the denoisers that have classes. `data` (n, *):
    points to look for the nearest in. sigmas: increasing; 24 from 0.02 to 80 when None. keep: how many outputs.

    Raises ValueError for shapes and levels that do not fit.
    """
    require(len(denoisers) > 0, "denoisers: got none; expected a name and a denoiser each")
    require(y.ndim >= 2 and len(y) > 0, f"y: got shape {tuple(y.shape)}; expected (B, *) with B >= 1")
    require(data is None or data.shape[1:] == y.shape[1:], "data: expected points of the shape of those in y")
    levels = geometric_levels(Denoiser(), 0.02, 80.0, 24).flip(0) if sigmas is None else sigmas.double()
    good = levels.ndim == 1 and len(levels) > 0 and bool((levels[1:] > levels[:-1]).all()) and bool(levels[0] > 0)
    require(good, f"sigmas: got {levels.tolist()}; expected levels above 0, strictly increasing")
    y = y.double()
    n = keyed_normal(seed, Stream.NOISE, 0, range(len(y)), y.shape[1:]).to(y)
    noisy = torch.stack([y + sigma * n for sigma in levels.tolist()])
    curves = []
    with torch.no_grad(), bar("denoising", progress) as report:
        for name, model in denoisers.items():
            denoiser = as_denoiser(model)
            extra = conditions | ({"labels": labels} if labels is not None and denoiser.label_dim else {})
            curves.append(_curve(name, denoiser, y, noisy, levels, data, keep, extra))
            report(len(curves), len(denoisers))
    spread = float((y - y.mean(0)).square().mean().sqrt())
    return Denoised(levels, spread, y[:keep], noisy[:, :keep], tuple(curves))


def _curve(
    name: str,
    denoiser: Denoiser,
    y: Tensor,
    noisy: Tensor,
    levels: Tensor,
    data: Tensor | None,
    keep: int,
    conditions: dict[str, Any],
) -> DenoisedCurve:
    device = next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), y.device)
    flow, errors, nearest, outputs = Flow(denoiser, conditions), [], [], []
    with evaluation_mode(denoiser):
        for x, sigma in zip(noisy, levels.tolist(), strict=True):
            D = flow.denoise(x.to(device), sigma).to(y)
            errors.append((D - y).square().mean().sqrt())
            outputs.append(D[:keep])
            if data is not None:
                nearest.append(_to_nearest(D, data.to(D)))
    found = torch.stack(nearest) if nearest else None
    return DenoisedCurve(name, torch.stack(errors), found, torch.stack(outputs))


def _to_nearest(D: Tensor, data: Tensor) -> Tensor:
    """The RMS per dimension of D less the data point nearest to each."""
    distance = torch.cdist(D.flatten(1), data.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    return (distance.square().mean() / D[0].numel()).sqrt()
