"""Whether samples lie nearer to the training data than chance has it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..component import require
from ..seeds import Stream, keyed
from .distances import blocks, centred, check_sets

DRAWS = 1999  # random divisions for the p-value, whose least value is then 1/2000


class Memorisation(NamedTuple):
    """What part of the samples has its nearest neighbour in the training data, and what chance would make of it.

    share: the part; expected: the same for samples that owe no more to training than to held-out data. standard_error:
    of the share under that hypothesis. p_value: the chance of a share as large, under it; one-sided.
    """

    share: float
    expected: float
    standard_error: float
    p_value: float

    @property
    def excess(self) -> float:
        """(share - expected) / (1 - expected): 0 without memory, f where a part f of the samples are copies."""
        return (self.share - self.expected) / (1 - self.expected)

    @property
    def excess_error(self) -> float:
        """The standard error of the excess."""
        return self.standard_error / (1 - self.expected)


def memorisation(samples: Tensor, training: Tensor, reference: Tensor, *, seed: int = 0) -> Memorisation:
    """Compare the distance of each sample (n, *) to training data t (m, *) and to held-out data r (m', *):

        share = mean_i [ min_j |x_i - t_j| < min_j |x_i - r_j| ],    equal distances shared evenly among the neighbours

    For m = m' it is the area under the ROC curve of one distance against the other, a sample at a time. If the
    samples do not depend on which data were trained on, every division of the M = m + m' data into m and m' is equally
    likely. Data j is the nearest of a part w_j of the samples, sum w_j = 1, and over all divisions

        mean = m / M,    variance = m m' / (M (M - 1)) (sum w_j^2 - 1/M)

    so that popular neighbours do not feign memory, as they would with a binomial error. The p-value counts 1,999 random
    divisions. Distances are Euclidean between the numbers themselves, flattened. The held-out data must be drawn like
    the training data, without copies of them; as many as these is best. Raises ValueError for sets that do not fit, or
    fewer than 2 of them. Meehan et al. 2020 compare such distances to the same end.
    """
    require(
        samples.shape[1:] == training.shape[1:] == reference.shape[1:] and min(map(len, (training, reference))) >= 2,
        f"memorisation: got shapes {tuple(samples.shape)}, {tuple(training.shape)} and {tuple(reference.shape)}; "
        "expected samples of one shape, at least 2 of the data each",
    )
    pool = torch.cat([part.to(samples.device).flatten(1).double() for part in (training, reference)])
    check_sets(samples.flatten(1), pool)
    w = _weights(*centred(samples.flatten(1), pool))
    m, M = len(training), len(pool)
    share, variance = float(w[:m].sum()), m * (M - m) / (M * (M - 1)) * (float(w.square().sum()) - 1 / M)
    return Memorisation(share, m / M, max(0.0, variance) ** 0.5, _p_value(w.cpu().numpy(), m, share, seed))


def _weights(x: Tensor, pool: Tensor) -> Tensor:
    """For each of the pool, the part of the samples x that it is the nearest of."""
    w = torch.zeros(len(pool), dtype=x.dtype, device=x.device)
    for _, d2, rounding in blocks(x, pool):
        nearest = (d2 <= d2.amin(1, keepdim=True) + rounding).to(x.dtype)
        w += (nearest / nearest.sum(1, keepdim=True)).sum(0)
    return w / len(x)


def _p_value(w: np.ndarray, m: int, share: float, seed: int) -> float:
    """The part of random divisions whose share is as large, the one at hand counted among them."""
    generator = keyed(seed, Stream.SPLIT, 3)
    busy, found = w[w > 0], 0  # the others count for nothing, and may be many more
    for taken in generator.hypergeometric(m, len(w) - m, len(busy), size=DRAWS):  # of the busy ones, in training
        found += bool(generator.permutation(busy)[:taken].sum() >= share * (1 - 1e-12))
    return (found + 1) / (DRAWS + 1)
