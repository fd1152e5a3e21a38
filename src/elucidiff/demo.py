"""The demo: real digits, a trained class-conditional model, its samples under three samplers, scores, one report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from . import data as datasets
from .analysis import LossProfile, Score, loss_profile, score_samples
from .data import Dataset
from .denoiser import Denoiser, Preconditioned
from .design import EDM, IDDPM, VE, VP, citation, compare_designs
from .files import write_atomically
from .models import load
from .networks import Network
from .objective import LogNormal
from .progress import bar
from .result import Result
from .sampler import Sampler, sample
from .seeds import Stream, torch_seeded
from .training import TrainConfig, train

SAMPLES = 500
HELDOUT = 0.5
TRACED = slice(1, 4)  # samples whose way from noise is shown
SHOWN = 8  # samples a class on the page: three sheets fit side by side
IMAGES = 200_000
# The same number of network evaluations, 35, for each: Heun takes two a step and one for the last.
SAMPLERS: dict[str, Sampler] = {
    "EDM": EDM.sampler.replace(steps=18),
    "VP": VP.sampler.replace(steps=35),
    "VE": VE.sampler.replace(steps=35),
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What the demo measured, and what the report shows."""

    run: Path
    denoiser: Preconditioned
    seconds: dict[str, float]
    results: dict[str, Result]
    scores: dict[str, list[Score]]
    profiles: dict[str, LossProfile]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON data."""
        return {
            "run": str(self.run),
            "report": str(self.run / "report.html"),
            "seconds": {name: round(s, 1) for name, s in self.seconds.items()},
            "scores": {name: [s.to_dict() for s in scores] for name, scores in self.scores.items()},
        }


def run_demo(out: Path | None = None, *, images: int | None = None, seed: int = 0, say: Say = print) -> dict[str, Any]:
    """Run everything and write a run directory with report.html; returns the numbers as JSON data.

    out: a new folder; None takes runs/demo, or the next free name beside it. images: length of training.
    """
    started = time.perf_counter()
    run = free_name(Path("runs/demo")) if out is None else Path(out)
    whole = datasets.load("digits")
    trained_on, heldout = whole.split(HELDOUT)
    config = TrainConfig(data="digits", out=str(run), heldout=HELDOUT, images=images or IMAGES, seed=seed)
    say(f"1/4  training on {len(trained_on)} of the {len(whole)} built-in digits, for {config.images:,} images")
    train(config, data=whole, progress=True)
    denoiser = cast("Preconditioned", load(run))
    seconds = {"training": time.perf_counter() - started}
    say(f"     done in {seconds['training']:.0f} s; the model is in {run}")

    say(f"2/4  sampling {SAMPLES} digits with each of {', '.join(SAMPLERS)} at 35 network evaluations")
    results = {name: _draw(denoiser, sampler, f"sampling, {name}") for name, sampler in SAMPLERS.items()}
    for name, result in results.items():
        result.save(run / "samples" / name.lower(), model=str(run))
    results["untrained"] = _draw(_untrained(denoiser, seed), SAMPLERS["EDM"], "sampling, untrained network")
    seconds["sampling"] = time.perf_counter() - started - sum(seconds.values())

    say(f"3/4  scoring against the {len(heldout)} held-out digits")
    scores = {
        name: score_samples(result.x, heldout, trained_on, labels=result.labels) for name, result in results.items()
    }
    profiles = _profiles(denoiser, trained_on, heldout)
    for line in score_lines(scores):
        say(f"     {line}")

    say("4/4  drawing the report")
    seconds["scores"] = time.perf_counter() - started - sum(seconds.values())
    outcome = Outcome(run, denoiser, seconds, results, scores, profiles)
    write_atomically(run / "scores.json", (json.dumps(outcome.to_dict(), indent=2) + "\n").encode())
    report = write_report(outcome)
    say(f"     the whole demo took {time.perf_counter() - started:.0f} s")
    say(f"report: {report.resolve()}")
    return outcome.to_dict()


def free_name(path: Path) -> Path:
    """The path, or path-2, path-3, ... when it is taken."""
    names = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 1000))]
    return next(p for p in names if not p.exists())


def score_lines(scores: dict[str, list[Score]]) -> list[str]:
    """The scores as aligned text, the real-against-real line last."""
    first = next(iter(scores.values()))
    lines = ["".join(["sampler".ljust(12), *(s.name.rjust(20) for s in first)])]
    for name, row in scores.items():
        lines.append("".join([name.ljust(12), *(_shown(s.value).rjust(20) for s in row)]))
    return [*lines, "".join(["real data".ljust(12), *(_shown(s.real).rjust(20) for s in first)])]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _draw(denoiser: Denoiser, sampler: Sampler, title: str) -> Result:
    """SAMPLES digits, each of a class drawn from its seed.

    Dealing the classes in turn would be no sample of the data: a set with exactly equal classes scores better
    than real data of the same size.
    """
    with bar(title) as report:
        return sample(
            denoiser,
            sampler,
            seeds=range(SAMPLES),
            record=True,
            callback=lambda state: report(state.i + 1, state.steps),
        )


def _untrained(model: Preconditioned, seed: int) -> Preconditioned:
    """The same network with fresh random weights: what the scores say of no training at all."""
    network, shape = cast("Network", model.network_config), cast("tuple[int, ...]", model.shape)
    with torch_seeded(seed, Stream.INIT, 1):
        return Preconditioned(network, model.preconditioning, shape=shape, label_dim=model.label_dim)


def _profiles(denoiser: Denoiser, trained_on: Dataset, heldout: Dataset) -> dict[str, LossProfile]:
    sigma = torch.logspace(-2.7, 1.9, 24, dtype=torch.float64)
    sigma_data = trained_on.sigma_data()
    weighting = EDM.with_sigma_data(sigma_data).objective.weighting
    sets = {"training digits": trained_on, "held-out digits": heldout}
    return {name: loss_profile(denoiser, data, weighting, sigma) for name, data in sets.items()}


def write_report(outcome: Outcome) -> Path:
    """The page with everything: samples, scores, trajectory, loss per noise level, levels, Table 1, citations."""
    from .report import Page

    page = Page(
        "Handwritten digits, from noise",
        "A diffusion model trained, sampled and measured by elucidiff on this machine.",
    )
    edm = {s.metric: s for s in outcome.scores["EDM"]}
    page.facts(
        {
            "training": f"{outcome.seconds['training']:.0f} s",
            "class agreement": f"{edm['agreement'].value:.1%}",
            "Fréchet distance": f"{edm['fd'].value:.2f}",
            "the same, real data": f"{edm['fd'].real:.2f}",
            "evaluations a sample": str(outcome.results["EDM"].nfe),
        }
    )
    _samples_section(page, outcome)
    _scores_section(page, outcome)
    _trajectory_section(page, outcome)
    _training_section(page, outcome)
    _design_section(page)
    return page.write(outcome.run / "report.html")


def _samples_section(page: Any, outcome: Outcome) -> None:
    from .report import sample_sheet

    page.section(
        "Samples",
        "Each row asks for one digit. The three samplers start from the same noise, use the same network and call it "
        "equally often: the differences are the sampler's alone.",
    )
    sheets = []
    for name, result in outcome.results.items():
        if name == "untrained":
            continue
        asked = cast("Tensor", result.labels).argmax(1)
        by_class = torch.cat([_row(result.x[asked == digit]) for digit in range(10)])
        png = sample_sheet(by_class, columns=SHOWN, row_labels=[str(d) for d in range(10)], scale=9)
        sheets.append((png, f"{name}, {result.nfe} evaluations", f"Samples of the digits 0 to 9 by the {name} sampler"))
    page.pictures(sheets)


def _row(images: Tensor) -> Tensor:
    """The first SHOWN images, white ones where there are fewer."""
    missing = max(SHOWN - len(images), 0)
    return torch.cat([images[:SHOWN], images.new_ones(missing, *images.shape[1:])])


def _scores_section(page: Any, outcome: Outcome) -> None:
    from .report import score_plot

    first = outcome.scores["EDM"][0]
    page.section(
        "Scores",
        f"{first.n} samples each, against {first.n_reference} digits that training never saw. The line of real data is "
        f"what {first.n} real digits of the training half get against the same reference: there a model is as good as "
        "the data.",
    )
    header = ["sampler", "evaluations", *(s.name for s in outcome.scores["EDM"])]
    rows = []
    for name, scores in outcome.scores.items():
        cells = [f"{s.value:.4g}" + ("" if s.error is None else f" ± {s.error:.1g}") for s in scores]
        label = "untrained network, EDM sampler" if name == "untrained" else name
        rows.append([label, str(outcome.results[name].nfe), *cells])
    rows.append(["real data", "–", *(_shown(s.real) for s in outcome.scores["EDM"])])
    note = (
        "Features: a digit classifier trained on the held-out half only. Distances depend on the features and on the "
        "number of samples; compare them with the real line, not with numbers from elsewhere."
    )
    page.table(header, rows, note=note, numeric={1, 2, 3, 4}, highlight=0)
    bars = [(name, scores[0].value, scores[0].error) for name, scores in outcome.scores.items()]
    page.picture(
        score_plot(bars, real=first.real or 0.0, label="Fréchet distance (lower is better)"),
        "Fréchet distance of each sampler, and of real data at the same size.",
        "Fréchet distances as a chart",
    )


def _trajectory_section(page: Any, outcome: Outcome) -> None:
    from .report import levels_plot, trajectory_sheet

    trajectory = outcome.results["EDM"].trajectory
    page.section(
        "From noise to digit",
        "Above, the state x as the noise level falls; below, what the denoiser makes of it: D(x; σ), the mean of all "
        "digits that x could still become.",
    )
    if trajectory is None or trajectory.x is None or trajectory.denoised is None:
        raise ValueError("the report needs results with a recorded trajectory (record=True)")
    x, denoised = trajectory.x[:, TRACED], trajectory.denoised[:, TRACED]
    levels: dict[str, Tensor] = {name: result.sigmas for name, result in outcome.results.items() if name != "untrained"}
    page.pictures(
        [
            (
                trajectory_sheet(x, denoised, trajectory.sigmas),
                "Three samples of the EDM sampler along σ.",
                "States and denoised images at falling noise levels",
            ),
            (
                levels_plot(levels),
                "Where each sampler spends its steps. VP and VE take 35 Euler steps, EDM 18 Heun steps.",
                "Noise levels by step of each sampler",
            ),
        ]
    )


def _training_section(page: Any, outcome: Outcome) -> None:
    from .report import loss_plot, training_plot
    from .report.training import loss_by_sigma_plot

    lines = [json.loads(line) for line in (outcome.run / "metrics.jsonl").read_text().splitlines()]
    sigma = next(iter(outcome.profiles.values())).sigma
    fine = torch.logspace(-2.7, 1.9, 200, dtype=torch.float64)
    z = (fine.log() - LogNormal().P_mean) / LogNormal().P_std
    page.section(
        "Training",
        "The loss of Eq. 8 at each noise level, by pixel. At small σ it is near 1: the digits are hidden in the last "
        "grain of noise, and nothing can be learned. At large σ what remains is how digits of one class differ. The "
        "shaded curve is where training puts its effort.",
    )
    curves = {name: (profile.mean, profile.error) for name, profile in outcome.profiles.items()}
    page.pictures(
        [
            (
                loss_plot(sigma, curves, density=(fine, (-0.5 * z**2).exp())),
                "Loss per noise level; where the two curves part, the model remembers its training digits.",
                "Loss by noise level, for training and held-out digits",
            ),
            (
                training_plot([line["images"] for line in lines], [line["loss"] for line in lines]),
                "Loss during training, over all noise levels.",
                "Training loss by images seen",
            ),
            (
                loss_by_sigma_plot(outcome.run),
                "Loss per noise level while it trained, from light to dark: the smallest σ come last.",
                "Loss by noise level in five parts of the training",
            ),
        ]
    )


def _design_section(page: Any) -> None:
    page.section(
        "The design space", "Table 1 of the paper, printed by the code. Every cell is a value that can be replaced."
    )
    page.preformatted(compare_designs(VP, VE, IDDPM, EDM))
    page.section("Sources", "What the samplers and the training of this page are built on.")
    page.preformatted(citation(EDM) + "\n\n" + citation(VP))
