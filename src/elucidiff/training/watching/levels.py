"""The loss of training by noise level, over time: where on the sigma axis the model still learns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..trainer import Step, Trainer
from .watch import StepLines

LOW, HIGH, BINS = 0.002, 80.0, 20  # equal parts of ln(sigma); levels beyond belong to the first and the last
ENOUGH = 16  # samples of a bin, from which on trackers are told its mean: fewer are mostly noise


class LossBySigma(StepLines):
    """loss_by_sigma.jsonl: the mean loss of each bin of noise levels, of the samples since the last line.

    images; and of each bin that has samples: sigma (its middle), loss (lambda ||D - y||^2 / d, d entries a sample),
    count. Every 2,000 images 20 bins have 100 samples each at best: average several lines.
    """

    file = "loss_by_sigma.jsonl"

    def line(self, trainer: Trainer, steps: Sequence[Step], seconds: float) -> None:
        """Write the line of these steps."""
        good = [step for step in steps if not step.skipped] or steps[:0]
        sigma = torch.cat([torch.empty(0), *(step.sigma for step in good)])
        losses = torch.cat([torch.empty(0), *(step.losses for step in good)]).double() / math.prod(
            trainer.dataset.shape
        )
        middles, means, counts = by_bin(sigma, losses)
        line = {"images": steps[-1].images, "sigma": middles, "loss": means, "count": counts}
        told = [(s, loss) for s, loss, n in zip(middles, means, counts, strict=True) if n >= ENOUGH]
        self.write(line, {f"loss_by_sigma/{s:g}": loss for s, loss in told})


def by_bin(sigma: Tensor, losses: Tensor) -> tuple[list[float], list[float], list[int]]:
    """The middle of each bin that has levels sigma (n,), the mean of their losses (n,), how many they are."""
    place = (sigma / LOW).log() / math.log(HIGH / LOW)
    index = (place * BINS).floor().long().clamp(0, BINS - 1)
    count = torch.bincount(index, minlength=BINS)
    total = torch.zeros(BINS, dtype=torch.float64).index_add_(0, index, losses.double())
    found = count.nonzero()[:, 0].tolist()
    middles = [float(f"{LOW * (HIGH / LOW) ** ((i + 0.5) / BINS):.4g}") for i in found]
    return middles, [float(f"{total[i] / count[i]:.6g}") for i in found], [int(count[i]) for i in found]
