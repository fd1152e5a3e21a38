"""What one training step is made of: a pure function of (seed, step), so that a run can stop, resume and be split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..augment import Augment
from ..data import Dataset
from ..objective import NoiseDistribution
from ..seeds import Stream, keyed, keyed_normal, keyed_uniform, permutation


class Draws(NamedTuple):
    """One batch: y (B, *), labels (B, label_dim) or None, levels sigma (B,) float64, unit noise n (B, *).

    augment: the parameters of the augmentation, to be applied to y on the device; None without any.
    condition: what the data pair y with, (B, K, *); None for data without.
    replaced: whether a sample stands in the place of one that cannot be read (B,).
    """

    y: Tensor
    labels: Tensor | None
    sigma: Tensor
    n: Tensor
    replaced: Tensor
    augment: dict[str, Tensor] | None = None
    condition: Tensor | None = None


class Order:
    """Which sample comes at which position: every sample once an epoch, in an order of the epoch's own."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._recent: dict[int, np.ndarray] = {}  # two epochs; replaced whole, since threads may ask at once

    def at(self, first: int, count: int) -> np.ndarray:
        """The sample indices at positions first .. first + count - 1, without visiting those before."""
        epochs, places = np.divmod(np.arange(first, first + count), self.size)
        found = [self._in_epoch(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate([np.empty(0, np.int64), *found])

    def _in_epoch(self, epoch: int) -> np.ndarray:
        recent = self._recent
        if epoch not in recent:
            recent = dict([*recent.items()][-1:]) | {epoch: permutation(self.size, self.seed, epoch)}
            self._recent = recent
        return recent[epoch]


def draw(
    data: Dataset,
    order: Order,
    noise: NoiseDistribution,
    step: int,
    batch: int,
    *,
    rows: range | None = None,
    label_dropout: float = 0.0,
    augment: Augment | None = None,
    stratified: bool = False,
) -> Draws:
    """The batch of a step. Sample j of the step depends on (order.seed, step, j) alone.

    rows: which samples of the batch; None: all. stratified: the noise distribution is cut into as many equal parts as
    the batch has samples, and each sample gets one of them: the levels of a batch lie evenly, and the estimate of the
    loss spreads less. They then depend on the size of the batch too.
    """
    seed, rows = order.seed, range(batch) if rows is None else rows
    chosen = order.at(step * batch + rows.start, len(rows))
    read, y, labels = data.batch_read(chosen)
    if labels is not None and label_dropout > 0:
        kept = keyed_uniform(seed, Stream.LABEL, step, rows) >= label_dropout
        labels = labels * kept[:, None]
    u = keyed_uniform(seed, Stream.LEVEL, step, rows)
    if stratified:
        u = (torch.from_numpy(keyed(seed, Stream.STRATUM, step).permutation(batch)[rows.start : rows.stop]) + u) / batch
    sigma = noise.quantile(u)
    n = keyed_normal(seed, Stream.NOISE, step, rows, y.shape[1:])
    parameters = augment.draw(seed, step, rows) if augment else None
    replaced = torch.from_numpy(read != chosen)
    return Draws(y, labels, sigma, n, replaced, parameters, data.conditions(read))


def rows_of_part(part: int, count: int, batch: int) -> range:
    """The samples of the batch in one of `count` parts of nearly equal size."""
    return range(part * batch // count, (part + 1) * batch // count)
