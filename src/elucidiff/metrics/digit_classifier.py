"""The small network that reads 8x8 digits: an independent judge of the demo's samples, and a feature extractor."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import FormatError
from ..files import sha256

SHAPE = (1, 8, 8)
WEIGHTS = Path(__file__).with_name("digits.safetensors")
RECORD = Path(__file__).with_name("digits.json")


class DigitClassifier(nn.Module):
    """Images (B, 1, 8, 8) in [-1, 1] -> 40 features -> 10 logits; trained by scripts/train_digit_classifier.py.

    Four 3x3 convolutions, at 8x8 and, after pooling, at 4x4; the features are a linear map of the last grid.
    """

    def __init__(self, width: int = 24, features: int = 40, dropout: float = 0.0) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_block(1, width),
            *_block(width, width),
            nn.MaxPool2d(2),
            nn.Dropout2d(dropout / 4),
            *_block(width, 2 * width),
            *_block(2 * width, 2 * width),
            nn.Flatten(),
        )
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(32 * width, features), nn.GELU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, 10))

    def features(self, images: Tensor) -> Tensor:
        """The layer before the logits (B, 40)."""
        return self.project(self.trunk(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits (B, 10)."""
        return self.head(self.features(images))


def _block(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.GELU()]


@functools.cache
def shipped_classifier(device: str, dtype: torch.dtype) -> DigitClassifier:
    """The shipped weights in evaluation mode, checked against their recorded SHA-256. Raises FormatError."""
    from safetensors.torch import load_file

    recorded = json.loads(RECORD.read_text(encoding="utf-8"))["sha256"]
    if sha256(WEIGHTS) != recorded:
        raise FormatError(f"{WEIGHTS}: not the weights that {RECORD.name} describes (SHA-256 differs)")
    network = DigitClassifier()
    network.load_state_dict(load_file(WEIGHTS))
    return network.to(device, dtype).eval().requires_grad_(False)
