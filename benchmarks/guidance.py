"""What guidance does to a class-conditional model of the digits: class agreement against variety.

    python benchmarks/guidance.py [--run DIR] [--num 1000] [--steps 18] [--json FILE]

Trains a small model on half of the digits with label dropout 0.2 (two minutes on one core), or takes the run DIR that
an earlier call left. Then samples with the same seeds and classes under each guidance, and prints a table:

    agreement   the part of the samples that the digit classifier takes for the class asked for
    variety     mean distance between two samples of one class, in the classifier's features
    FD          Frechet distance to the held-out half of the digits
    networks    evaluations of a network for each sample

with the same numbers for real digits of the training half below it.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

import elucidiff as ed
from elucidiff.analysis import reference_and_real, score_samples
from elucidiff.metrics import DigitFeatures

WEIGHTS = (1.0, 1.5, 2.0, 3.0, 4.0)
INTERVAL = (0.3, 5.0)


def trained(images: int) -> Path:
    """A run of the digits with label dropout, six snapshots; the first is the bad version for autoguidance."""
    run = Path(mkdtemp(prefix="elucidiff-guidance-")) / "run"
    config = ed.TrainConfig(
        out=str(run), heldout=0.5, images=images, label_dropout=0.2, snapshots=6, ema_halflife=8_000.0
    )
    return ed.train(config, progress=True)


def variety(samples: Tensor, classes: Tensor) -> float:
    """Mean distance between two samples of one class, over pairs and then classes, in the classifier's features."""
    features = DigitFeatures().features(samples)
    return torch.stack([torch.pdist(features[classes == c]).mean() for c in range(10)]).mean().item()


def guided_models(run: Path) -> Iterator[tuple[str, float, ed.Denoiser]]:
    """(kind, weight, model) of every row; weight 1 is no guidance."""
    model, early = ed.load(run), ed.load(sorted((run / "snapshots").iterdir())[0])
    yield "none", 1.0, model
    for weight in WEIGHTS[1:]:
        yield "classifier-free", weight, ed.guidance.ClassifierFree(model, weight)
    for weight in WEIGHTS[1:]:
        name = f"classifier-free, ({INTERVAL[0]:g}, {INTERVAL[1]:g}]"
        yield name, weight, ed.guidance.ClassifierFree(model, weight, INTERVAL)
    for weight in WEIGHTS[1:]:
        yield "auto", weight, ed.guidance.Auto(model, early, weight)


def measured(run: Path, num: int, steps: int) -> list[dict]:
    """A row of numbers for each guidance, and one for real digits."""
    reference, real = reference_and_real(ed.data.load("digits"))
    sampler = ed.EDM.sampler.replace(steps=steps)
    rows = []
    for kind, weight, model in guided_models(run):
        result = ed.sample(model, sampler, seeds=range(num), batch_size=250)
        scores = {s.metric: s for s in score_samples(result.x, reference, real, labels=result.labels)}
        networks = getattr(model, "network_calls", 1) / getattr(model, "main_calls", 1)
        row = {"guidance": kind, "weight": weight, "agreement": scores["agreement"].value}
        row |= {"error": scores["agreement"].error, "variety": variety(result.x, result.labels.argmax(1))}
        rows.append(row | {"fd": scores["fd"].value, "networks": result.nfe * networks})
        print(line(rows[-1]), flush=True)
    truth, labels = real.batch(range(len(real)))
    real_row = {"guidance": f"real digits ({len(real)})", "agreement": scores["agreement"].real}
    rows.append(real_row | {"variety": variety(truth, labels.argmax(1)), "fd": scores["fd"].real})
    print(line(rows[-1]))
    return rows


def line(row: dict) -> str:
    """One row of the table."""
    agreement = f"{row['agreement']:.3f}" + (f" ± {row['error']:.3f}" if "error" in row else "")
    weight, networks = (f"{row[name]:g}" if name in row else "" for name in ("weight", "networks"))
    return f"{row['guidance']:<28}{weight:>6}  {agreement:<16}{row['variety']:>8.3f}{row['fd']:>8.2f}{networks:>10}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="A run of an earlier call.")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of a run without label dropout
    run = arguments.run or trained(arguments.images)
    print(f"{run}, {arguments.num} samples, {arguments.steps} steps\n")
    print(f"{'guidance':<28}{'weight':>6}  {'agreement':<16}{'variety':>8}{'FD':>8}{'networks':>10}")
    rows = measured(run, arguments.num, arguments.steps)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
