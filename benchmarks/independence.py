"""Do the choices of sampling and of training matter independently? EDM's first experiment, in small.

    python benchmarks/independence.py [--images 100000] [--num 500] [--nfe 17,35,79] [--out runs/independence]

Trains one network on half of the built-in digits with each of the training designs VP, VE and EDM of Table 1 (same
network, images, seed, and sigma_data measured), and draws from each with the original samplers of VP and VE and
with EDM's. Finished runs in the output folder are used, and so are finished measurements: a killed script goes on.
Prints the table of Frechet distances to the other half, and writes it as independence.md with independence.json.
"""

import argparse
import json
import sys
from pathlib import Path

import elucidiff as ed
from elucidiff.analysis import Comparison, Spread, compare
from elucidiff.progress import bar

DESIGNS = {"vp": ed.VP, "ve": ed.VE, "edm": ed.EDM}
HELDOUT = 0.5


def trained(out: Path, images: int, seed: int) -> dict[str, ed.Denoiser]:
    """The networks, trained where no finished run is found. Raises SystemExit for a run of another configuration."""
    data = ed.data.load("digits")
    models = {}
    for name, design in DESIGNS.items():
        run = out / name
        config = ed.TrainConfig(
            data="digits", out=str(run), design=design, heldout=HELDOUT, images=images, seed=seed, snapshots=1
        )
        if not (run / "config.json").is_file():
            print(f"training with the design {design.name} on {images:,} images", file=sys.stderr)
            ed.train(config, data=data, progress=True)
        elif ed.TrainConfig.load(run / "config.json").replace(out=str(run)) != config:
            raise SystemExit(f"{run}: trained with another configuration; name another --out")
        models[name] = ed.load(run)  # FormatError when it was interrupted: remove the folder
    return models


def shown(spread: Spread, nfe: int, budget: int) -> str:
    """Mean and standard deviation, with the evaluations where they are fewer than the budget."""
    fewer = "" if nfe == budget else f" ({nfe})"
    return f"{spread.mean:.2f} ± {spread.std:.2f}{fewer}" if spread.std is not None else f"{spread.mean:.2f}{fewer}"


def gain(found: Comparison, model: str, own: str, budget: int) -> Spread:
    """By how much EDM's sampler is better than the network's own, repeat by repeat on the same seeds."""
    by_name = {p.name: p.scores["fd"].values for p in found.points if p.model == model and p.budget == budget}
    return Spread(tuple(a - b for a, b in zip(by_name[own], by_name["edm"], strict=True)))


def markdown(found: Comparison, images: int) -> str:
    """The table: a row for each network and sampler, a column for each budget; then the gains."""
    facts = found.facts
    lines = [
        f"Fréchet distance (features: the shipped digit classifier) of {facts['repeats']} × {facts['num']} samples to "
        f"{facts['n_reference']} held-out digits, mean ± standard deviation over the repeats; "
        f"{images:,} training images each. Real digits at the same size: {found.real['fd']:.2f}.",
        "",
        "| trained with | sampled with | " + " | ".join(f"NFE {b}" for b in found.budgets) + " |",
        "|---|---|" + "---:|" * len(found.budgets),
    ]
    for (model, sampler), points in found.rows().items():
        cells = {p.budget: shown(p.scores["fd"], p.nfe, p.budget or 0) for p in points}
        original = " (its own)" if model == sampler else ""
        row = [model.upper(), sampler.upper() + original, *(cells.get(b, "") for b in found.budgets)]
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "Gain of EDM's sampler over the network's original one, on the same seeds:", ""]
    lines += ["| trained with | " + " | ".join(f"NFE {b}" for b in found.budgets) + " |"]
    lines += ["|---|" + "---:|" * len(found.budgets)]
    for model in ("vp", "ve"):
        spreads = [gain(found, model, model, budget) for budget in found.budgets]
        lines.append(f"| {model.upper()} | " + " | ".join(f"{s.mean:+.2f} ± {s.std or 0:.2f}" for s in spreads) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, measure what is missing, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="training images of each network")
    parser.add_argument("--num", type=int, default=500, help="samples a repeat")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--nfe", default="17,35,79", help="budgets; odd ones are met exactly by all")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--out", type=Path, default=Path("runs/independence"))
    arguments = parser.parse_args()
    models = trained(arguments.out, arguments.images, arguments.seed)
    with bar("comparing") as report:
        found = compare(
            models,
            ed.data.load("digits"),
            DESIGNS,
            [int(n) for n in arguments.nfe.split(",")],
            num=arguments.num,
            repeats=arguments.repeat,
            heldout=HELDOUT,
            store=arguments.out / "independence.jsonl",
            progress=report,
        )
    table = markdown(found, arguments.images)
    (arguments.out / "independence.json").write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    (arguments.out / "independence.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
