"""The Inception score, on the logits of any classifier: samples of clear classes, and of many of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..component import require


class ClassScore(NamedTuple):
    """exp of the information that a sample gives on its class, 1 to K; standard error None for one split."""

    value: float
    standard_error: float | None


def class_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> ClassScore:
    """The Inception score of logits (n, K) of any classifier, the mean over random splits of equal size:

        exp( mean_x KL( p(y|x) || p(y) ) ),    p(y) = mean_x p(y|x) over the split

    Between 1 (every sample says the same) and K (each says one class with certainty, all classes equally often). It
    knows nothing of the data: compare it with the value of real data, at the same n and splits (few samples a split
    raise it). The samples are shuffled first, since they often come ordered by class. The standard error is that of
    the mean over the splits. Raises ValueError for logits or splits that are none. Salimans et al. 2016, Section 4.
    """
    require(
        logits.ndim == 2 and logits.shape[1] >= 2 and bool(torch.isfinite(logits).all()),
        f"logits: got shape {tuple(logits.shape)}; expected (n, K), K >= 2, finite",
    )
    require(
        1 <= splits <= len(logits) // 2,
        f"splits: got {splits} of {len(logits)} samples; expected 1 to {len(logits) // 2}, two samples in each",
    )
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    log_p = logits.detach().to("cpu", torch.float64).log_softmax(1)[order]
    found = torch.stack([_information(part).exp() for part in log_p.tensor_split(splits)])
    error = None if splits == 1 else float(found.std()) / splits**0.5
    return ClassScore(float(found.mean()), error)


def _information(log_p: Tensor) -> Tensor:
    """The mean over the rows of KL(p(y|x) || p(y)), in nats."""
    log_marginal = log_p.logsumexp(0) - torch.tensor(len(log_p), dtype=log_p.dtype).log()
    return torch.xlogy(p := log_p.exp(), p).sum(1).mean() - torch.xlogy(log_marginal.exp(), log_marginal.exp()).sum()
