"""How every score moves when real pictures are damaged: a table of MNIST's.

    python benchmarks/scores.py DATA TEST --features CLASSIFIER.json [--num 2000] [--out FOLDER] [--json FILE]

DATA and TEST are the two halves of a data set of grey pictures, such as ../shared/data/mnist-train.zip and
mnist-test.zip; CLASSIFIER.json is what `elucidiff classifier DATA` wrote. The reference is the first `--num` pictures
of TEST, or of DATA's second half in the row of training against training; "training" in the column of copies is all of
DATA but that. With --out, FOLDER/scores.md is written, with the table.

Rows: other training pictures against training pictures; training pictures against test pictures; the same blurred, with
noise, of one class, and ten pictures repeated. A distance is to grow with damage; precision and density are to fall
where pictures are bad, recall and coverage where variety is lost; copies where pictures are those of the training data.
"""

import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import elucidiff as ed
from elucidiff.analysis import score_samples
from elucidiff.data import Dataset
from elucidiff.metrics import load_classifier

METRICS = ("fd", "kd", "precision", "recall", "density", "coverage", "is", "swd", "energy", "mmd", "nearest")
WORDS = {"fd": "FD", "kd": "KD", "is": "class score", "nearest": "copies", "swd": "SWD", "mmd": "MMD"}
COPIES = 10  # pictures that are repeated


def blurred(x: Tensor, sigma: float) -> Tensor:
    """With a Gaussian of so many pixels."""
    taps = torch.arange(-6, 7.0)
    kernel = torch.exp(-taps.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None, None]
    x = F.conv2d(F.pad(x, (6, 6, 0, 0), mode="reflect"), kernel)
    return F.conv2d(F.pad(x, (0, 0, 6, 6), mode="reflect"), kernel.mT)


def noisy(x: Tensor, sigma: float) -> Tensor:
    """With Gaussian noise, and within the range of pictures."""
    return (x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


def rows(data: Dataset, test: Dataset, num: int) -> dict[str, tuple[Tensor, Dataset]]:
    """Samples and the reference of each row; the samples are pictures that no reference has."""
    first, second = data.split(0.5)
    reference, other = test.subset(range(num)), second.subset(range(num))
    x, labels = first.batch(torch.arange(num))
    classes = torch.as_tensor(labels).argmax(1)
    unseen, _ = test.batch(torch.arange(num, min(len(test), 2 * num)))
    one = first.tensor()[torch.from_numpy(first.labels == 3)][:num] if first.labels is not None else x
    return {
        "training, against training": (x, other),
        "training": (x, reference),
        "test, other pictures": (unseen, reference),
        "blurred, 0.5 pixels": (blurred(x, 0.5), reference),
        "blurred, 1 pixel": (blurred(x, 1.0), reference),
        "noise, 0.1": (noisy(x, 0.1), reference),
        "noise, 0.3": (noisy(x, 0.3), reference),
        "one class": (one, reference),
        "without half the classes": (x[classes < 5], reference),
        f"{COPIES} pictures repeated": (x[:COPIES].repeat(num // COPIES, 1, 1, 1), reference),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """In Markdown."""
    lines = ["| | " + " | ".join(WORDS.get(m, m) for m in METRICS) + " |", "|---|" + "---:|" * len(METRICS)]
    lines += [f"| {name} | " + " | ".join(f"{row[m]:.3g}" for m in METRICS) + " |" for name, row in found.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("test")
    parser.add_argument("--features", required=True)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    data, test, features = ed.data.load(given.data), ed.data.load(given.test), load_classifier(given.features)
    first, _ = data.split(0.5)
    found = {}
    for name, (x, reference) in rows(data, test, given.num).items():
        scores = score_samples(x, reference, first, metrics=METRICS, extractor=features)
        found[name] = {s.metric: s.value for s in scores}
        print(name, file=sys.stderr)
    text = table(found)
    print(text)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.out:
        about = (
            f"Printed by `python benchmarks/scores.py {Path(given.data).name} {Path(given.test).name} --features "
            f"{Path(given.features).name} --num {given.num}` on {date.today()}, torch {torch.__version__}, "
            f"{platform.machine()}."
        )
        (given.out / "scores.md").write_text(PAGE.format(about=about, table=text, num=given.num), encoding="utf-8")


PAGE = """# How the scores move

A score is worth something where it moves as its definition says. Here pictures of MNIST play the samples: {num}
pictures of the training half against the first {num} of the test half, as they are and damaged. Features are those of
a digit classifier trained on the training half (`elucidiff classifier`); SWD and copies are measured on pixels.

{table}

{about}

- The first three rows are what real data get: no distance is 0 there. FD is never below 0 and has a bias that falls
  with the number of samples; KD, energy distance and MMD are unbiased and may be negative.
- FD, KD, SWD, energy distance and MMD grow with blur and with noise. All but SWD, which compares patches, grow at least
  as much where classes or pictures are missing.
- Precision and density fall where pictures are bad. One class alone leaves them as they are: they know nothing of
  variety. Ten repeated pictures have a precision of 1.
- Recall and coverage fall where variety is lost, and where pictures are so bad that no real one is among them.
- The class score knows no data: it is near the number of classes where each picture is sure of its class, and 1 for one
  class. Noise and blur that ruin precision leave it at two thirds.
- Copies: how much nearer to training than to test pictures the samples are, beyond chance: 1 where all are. Blur and
  noise do not hide copies. Other test pictures are below 0: the two halves of MNIST are by different writers.
"""

if __name__ == "__main__":
    main()
