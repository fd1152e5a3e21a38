"""Train the digit classifier that ships with the package, on digits the demo's diffusion model never sees.

    python scripts/train_digit_classifier.py                     # half a minute on a CPU
    python scripts/train_digit_classifier.py --cross-validate    # four folds inside H: 99.55 %, 2 minutes

The embedded digits are split in halves, T and H = data.load("digits").split(0.5). The diffusion
model of the demo trains on T; the classifier trains on H alone, and T is its test set, looked at
once at the end. Everything chosen was chosen by cross-validation inside H.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from elucidiff import data
from elucidiff.files import sha256, write_atomically
from elucidiff.metrics.digit_classifier import RECORD, WEIGHTS, DigitClassifier
from elucidiff.seeds import Stream, torch_seeded

SEED = 0
STEPS = 1500
BATCH = 128
RATE = 3e-3
WEIGHT_DECAY = 0.05
DROPOUT = 0.3
SMOOTHING = 0.05
EMA = 0.995


def augmented(images: Tensor) -> Tensor:
    """Each image rotated, scaled, sheared and shifted a little, and bent by a smooth random field."""
    n = len(images)
    angle, shear = 0.17 * torch.randn(2, n)
    scale_x, scale_y = (0.08 * torch.randn(2, n)).exp()
    shift = 0.12 * torch.randn(n, 2)
    rows = [angle.cos() * scale_x, -angle.sin() + shear, angle.sin(), angle.cos() * scale_y]
    maps = torch.cat([torch.stack(rows, 1).view(n, 2, 2), shift[:, :, None]], dim=2)
    bend = F.interpolate(0.08 * torch.randn(n, 2, 3, 3), size=(8, 8), mode="bicubic")
    grid = F.affine_grid(maps, [n, 1, 8, 8], align_corners=False) + bend.permute(0, 2, 3, 1)
    # The background is -1, which grid_sample's zero padding does not know.
    moved = F.grid_sample(images + 1, grid, mode="bicubic", align_corners=False) - 1
    contrast = (0.1 * torch.randn(n, 1, 1, 1)).exp()
    return (((moved + 1) * contrast - 1) + 0.05 * torch.randn_like(moved)).clamp(-1, 1)


def trained(images: Tensor, digits: Tensor, seed: int, steps: int = STEPS) -> DigitClassifier:
    """The exponential average of the weights after training on these images."""
    with torch_seeded(seed, Stream.INIT):
        network = DigitClassifier(dropout=DROPOUT)
        average = torch.optim.swa_utils.AveragedModel(
            network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA), use_buffers=True
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
        for step in range(steps):
            ramp = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = RATE * ramp
            chosen = torch.randint(len(images), (BATCH,))
            logits = network(augmented(images[chosen]))
            loss = F.cross_entropy(logits, digits[chosen], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(network)
    return average.module.eval()


@torch.no_grad()
def errors(network: DigitClassifier, images: Tensor, digits: Tensor) -> int:
    """How many of the images are read wrongly."""
    return int((network(images).argmax(1) != digits).sum())


def cross_validate(heldout: data.Dataset, folds: int = 4) -> None:
    """Print the accuracy on each fold of H of a network trained on the other folds of H."""
    images, digits = heldout.tensor(), torch.from_numpy(heldout.labels)
    fold = torch.arange(len(heldout)) % folds
    wrong = 0
    for k in range(folds):
        missed = errors(trained(images[fold != k], digits[fold != k], SEED), images[fold == k], digits[fold == k])
        wrong += missed
        print(f"fold {k}: {missed} of {int((fold == k).sum())} wrong", flush=True)
    print(f"cross-validated accuracy inside H: {1 - wrong / len(heldout):.2%}")


def main() -> None:
    """Train on H, test on T, write the weights and the record."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--cross-validate", action="store_true")
    other_half, heldout = data.load("digits").split(0.5)
    if arguments.parse_args().cross_validate:
        return cross_validate(heldout)
    started = time.perf_counter()
    network = trained(heldout.tensor(), torch.from_numpy(heldout.labels), SEED)
    missed = errors(network, other_half.tensor(), torch.from_numpy(other_half.labels))
    write_atomically(WEIGHTS, save({k: v.contiguous() for k, v in network.state_dict().items()}))
    record = {
        "accuracy": 1 - missed / len(other_half),
        "wrong": missed,
        "tested_on": f'{len(other_half)} digits: train, _ = data.load("digits").split(0.5)',
        "trained_on": f'{len(heldout)} digits: _, heldout = data.load("digits").split(0.5)',
        "data_fingerprint": data.load("digits").fingerprint(),
        "command": "python scripts/train_digit_classifier.py",
        "seed": SEED,
        "steps": STEPS,
        "sha256": sha256(WEIGHTS),
    }
    write_atomically(RECORD, (json.dumps(record, indent=2) + "\n").encode())
    print(f"accuracy on {len(other_half)} unseen digits: {record['accuracy']:.2%} ({missed} wrong)")
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size:,} bytes, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
