"""Mean and standard deviation of samples that pass by one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Moments:
    """Mean and sum of squared deviations of each channel, sample by sample (Chan et al. 1979)."""

    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(1))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def add(self, sample: np.ndarray) -> None:
        """Count a sample (C, *)."""
        rows = sample.reshape(len(sample), -1).astype(np.float64)
        n = rows.shape[1]
        row_means = rows.mean(axis=1)
        delta = row_means - self.mean
        self.squares = (
            self.squares
            + np.square(rows - row_means[:, None]).sum(axis=1)
            + delta**2 * (self.count * n / (self.count + n))
        )
        self.mean = self.mean + delta * (n / (self.count + n))
        self.count += n

    def of_all(self) -> tuple[float, float]:
        """Mean and standard deviation over all elements."""
        variance = (self.squares / self.count).mean() + self.mean.var()
        return float(self.mean.mean()), float(np.sqrt(variance))
