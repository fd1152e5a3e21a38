"""How good the posterior methods are: held-out digits of which the left half is known.

    python benchmarks/inpainting.py RUN [--digits 100] [--each 4] [--steps 18] [--json FILE]

RUN is a run directory of `elucidiff demo`. Every method gets the same measurements, seeds, classes and samplers: Heun,
and Heun with churn. Scores are over the unknown half, energy score first (strictly proper, smaller is better); the gain
is the mean of the differences to plain replacement, digit by digit, with its standard error. Agreement is the part of
the samples in which the shipped classifier reads the true digit; the model is told it.
Seconds are processor time of one thread, for all samples.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import elucidiff as ed
from elucidiff import posterior as po
from elucidiff.analysis import reference_and_real
from elucidiff.metrics import DigitFeatures

SAMPLERS = {"heun": ed.solvers.Deterministic(), "heun + churn": ed.solvers.Churn(S_churn=20)}


def measured(run: str, digits: int, each: int, steps: int) -> list[dict]:
    """One row a sampler and method."""
    denoiser = ed.load(run)
    heldout, _ = reference_and_real(ed.data.load("digits"))
    truth, labels = heldout.batch(torch.linspace(0, len(heldout) - 1, digits).long())
    truth, unknown = truth.double(), ~po.Half("left").known((1, 8, 8)).reshape(-1)
    operator = po.Mask(po.Half("left"))
    y, told = operator.measure(truth).repeat_interleave(each, 0), labels.repeat_interleave(each, 0)
    rows = []
    for sampler_name, stochasticity in SAMPLERS.items():
        sampler = ed.EDM.sampler.replace(steps=steps, stochasticity=stochasticity)
        plain = None
        for name in ("replacement", "dps", "pigdm", "moment"):
            method = po.METHODS[name](denoiser, operator)
            started = time.process_time()
            result = ed.sample(
                method, sampler, seeds=range(len(y)), labels=told, measurement=y, batch_size=100, progress=True
            )
            seconds = time.process_time() - started
            score = po.score_restorations(result.x, truth, operator)
            X = result.x.flatten(1)[:, unknown].unflatten(0, (digits, each))
            energy = po.energy_scores(X, truth.flatten(1)[:, unknown])
            plain = energy if plain is None else plain
            gain = plain - energy
            right = DigitFeatures().logits(result.x).argmax(1) == told.argmax(1)
            rows.append(
                {"sampler": sampler_name, "method": name}
                | score.to_dict()
                | {
                    "gain": float(gain.mean()),
                    "gain_error": float(gain.std() / digits**0.5),
                    "agreement": float(right.double().mean()),
                    "known": float((operator.apply(result.x) - y).abs().max()),
                    "nfe": result.nfe,
                    "seconds": seconds,
                }
            )
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict) -> str:
    """A row of the table."""
    return (
        f"{row['sampler']:<13} {row['method']:<12} {row['energy']:.4f} ± {row['energy_error']:.4f}  "
        f"{row['gain']:+.4f} ± {row['gain_error']:.4f}  {row['rmse_of_mean']:.4f}  {row['rmse']:.4f}  "
        f"{row['agreement']:9.1%}  {row['known']:.0e}  {row['nfe']:>3}  {row['seconds']:6.1f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--digits", type=int, default=100)
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "                                             gain on           RMSE    RMSE               known\n"
        "sampler       method       energy score     replacement       of mean of one  agreement  pixels NFE seconds"
    )
    rows = measured(arguments.run, arguments.digits, arguments.each, arguments.steps)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
