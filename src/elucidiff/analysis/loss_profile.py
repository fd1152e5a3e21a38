"""The loss at each noise level: where on the sigma axis a model has learned something (EDM paper, Figure 5a)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Dataset
from ..denoiser import Denoiser, evaluation_mode
from ..objective import Weighting, loss_at
from ..request import image_condition
from ..seeds import Stream, keyed_normal


@dataclass(frozen=True)
class LossProfile:
    """Levels sigma (L,), the mean weighted loss per element (L,) at each, and its standard error (L,)."""

    sigma: Tensor
    mean: Tensor
    error: Tensor


def loss_profile(
    denoiser: Denoiser, data: Dataset, weighting: Weighting, sigma: Tensor, *, samples: int = 256, seed: int = 0
) -> LossProfile:
    """lambda(sigma) ||D(y + sigma n; sigma) - y||^2 / d at each level, over the first `samples` of the data.

    Every level uses the same samples and the same noise, so that the curve is smooth and two models compare.
    """
    rows = range(min(samples, len(data)))
    y, labels = data.batch(list(rows))
    n = keyed_normal(seed, Stream.NOISE, 0, rows, y.shape[1:])
    conditions = image_condition(denoiser, data, rows, y)
    if denoiser.label_dim and labels is not None:
        conditions["labels"] = labels
    means, errors = [], []
    with torch.no_grad(), evaluation_mode(denoiser):
        for level in sigma.double():
            losses = loss_at(denoiser, y, level.expand(len(y)), n, weighting, **conditions) / y[0].numel()
            means.append(losses.double().mean())
            errors.append(losses.double().std() / len(y) ** 0.5)
    return LossProfile(sigma, torch.stack(means), torch.stack(errors))
