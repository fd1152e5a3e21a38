"""The instruments as sections of the report. What they measure, and how, stands in `analysis`."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from .. import analysis
from ..analysis import reference_and_real, score_samples
from ..analysis.budget import at_budget
from ..analysis.recommend import Recommendation, recommend
from ..data import Dataset
from ..denoiser import Denoiser, EmpiricalDenoiser, GaussianMixtureDenoiser
from ..design import EDM
from ..metrics import DigitFeatures, extractor_for
from ..request import image_condition
from ..sampler import Sampler, sample
from ..solvers import DPMpp2M, Euler, Heun
from .section import Picture, Section, Subject, Table, short

FIRST_SEED, SCORED = 3000, 10_000  # first seeds, apart from those that choose and judge recommendations
EXACT_LIMIT = 20_000  # samples of the data of which an exact denoiser is made for comparison
TWO_DIRACS = ((-1.0, 1.0), 0.05)


def _seeds(subject: Subject, n: int | None = None) -> range:
    return range(FIRST_SEED, FIRST_SEED + (n or subject.seeds))


def recommendation(subject: Subject) -> Section:
    """Which sampler for how many evaluations."""
    found = recommend(subject.denoiser, subject.budgets, asked=subject.asked, progress=subject.progress)
    header = ["evaluations", "sampler", "error", "of the spread", "EDM's Heun", "next solver"]
    rows = [
        [
            str(one.nfe),
            one.name,
            f"{short(one.error, 2)} ± {short(one.standard_error, 1)}",
            f"{one.error / one.scale:.2%}",
            f"{short(one.heun, 2)} ({one.heun_nfe})",
            f"{one.second.split(',')[0]}, {short(one.second_error, 2)}",
        ]
        for one in found
    ]
    note = (
        "Error: RMS distance of the samples to the exact solution of the ODE for the same noise, on 32 seeds that had "
        "no part in the choice. An error well below 1 % of the spread is not seen; then the model decides the quality."
    )
    tables = [Table("Recommended samplers", header, rows, note, words=("sampler", "next solver"))]
    numbers: dict[str, Any] = {"recommendations": [one.to_dict() for one in found]}
    if subject.data is not None:
        scores = _scores(subject, subject.data, found)
        tables.append(scores)
        numbers["scores"] = [dict(zip(scores.header, row, strict=True)) for row in scores.rows]
    text = "\n\n".join([_headline(found), *(f"With {n.nfe} evaluations: {n.name}. It ends {n.reason}." for n in found)])
    files = {f"sampler-{one.nfe}.json": json.dumps(one.sampler.to_dict(), indent=2) + "\n" for one in found}
    return Section("Recommendation", text, numbers, tables, files=files)


def _headline(found: list[Recommendation]) -> str:
    """What the recommended samplers save: the budget at which they reach what Heun reaches with the largest."""
    most = max(found, key=lambda one: one.nfe)
    enough = min((one for one in found if one.error <= most.heun), key=lambda one: one.nfe, default=None)
    if enough is None or enough.nfe >= most.heun_nfe:
        return ""
    return (
        f"What EDM's Heun reaches with {most.heun_nfe} evaluations, {short(most.heun, 2)} from the exact samples, the "
        f"recommended sampler reaches with {enough.nfe}: {short(enough.error, 2)}."
    )


def _scores(subject: Subject, data: Dataset, found: list[Recommendation]) -> Table:
    """Scores of the recommended samplers against data, and of EDM's Heun at the same budgets."""
    reference, real = reference_and_real(data)
    rows, ideal = [], ""
    header = ["evaluations", "sampler"]
    for one in found:
        heun = at_budget(Sampler(), one.nfe, reference.shape, subject.denoiser)
        pair = [("recommended", one.sampler)] + ([] if heun is None else [("EDM's Heun", heun[0])])
        for name, sampler in pair:
            seeds = range(SCORED, SCORED + subject.num)
            run = sample(
                subject.denoiser,
                sampler,
                seeds=seeds,
                batch_size=min(256, subject.num),
                progress=subject.progress,
                **subject.asked(seeds),  # type: ignore[arg-type]
            )
            scores = score_samples(run.x.cpu(), reference, real, labels=run.labels)
            header = ["evaluations", "sampler", *(s.name for s in scores)]
            ideal = ", ".join(f"{s.name} {short(s.real)}" for s in scores)
            rows.append([str(run.nfe), name, *(short(s.value) for s in scores)])
    note = (
        f"{subject.num} samples against {len(reference)} of {subject.data_name}. Real data of that size: {ideal}. One "
        "set of seeds, the same in all rows, so rows compare; `compare` gives the spread over sets of seeds."
    )
    return Table("Scores of the recommended samplers", header, rows, note, words=("sampler",))


def truncation(subject: Subject) -> Section:
    """What each step does wrong, and all of them together."""
    from ..report.instruments import global_error_plot, truncation_plot

    base = Sampler()
    local = {
        "Euler": base.replace(solver=Euler()),
        "EDM, Heun": base.replace(solver=Heun()),
        "DPM-Solver++(2M)": base.replace(solver=DPMpp2M()),
    }
    seeds = _seeds(subject)
    asked: dict[str, Any] = {"seeds": seeds, "progress": subject.progress, **subject.asked(seeds)}
    errors = {name: analysis.truncation_error(subject.denoiser, one, **asked) for name, one in local.items()}
    whole = analysis.global_error(subject.denoiser, local, (6, 9, 12, 18, 24, 36), **asked)
    rows = []
    for curve in whole.curves:
        worst = errors[curve.name]
        i = int(worst.error.argmax())
        rows.append(
            [
                curve.name,
                short(float(worst.error.max()), 2),
                f"{short(float(worst.sigmas[i]), 2)} to {short(float(worst.sigmas[i + 1]), 2)}",
                *(f"{short(float(e), 2)} ({int(n)})" for n, e in zip(curve.nfe, curve.error, strict=True)),
                short(curve.order, 2),
            ]
        )
    header = ["solver", "worst step", "at σ", *(f"{n} steps" for n in (6, 9, 12, 18, 24, 36)), "order"]
    note = "RMS per dimension, units of the data; in brackets evaluations a sample. Order: the slope that was observed."
    return Section(
        "Truncation error",
        "Left: one step of the solver from the exact state, by the noise level it starts from (18 EDM steps). Right: "
        "the distance of the samples to the exact solution for the same noise. A step is worst where the paths bend "
        "most; an order above 1 pays as soon as the steps are short enough there.",
        {"local": {name: one.to_dict() for name, one in errors.items()}, "global": whole.to_dict()},
        [Table("Errors of the samples", header, rows, note, words=("at σ",))],
        [
            Picture("truncation", truncation_plot(errors), "Local error of each step.", "Local error over noise level"),
            Picture(
                "global-error",
                global_error_plot(whole),
                "Error of the samples by number of evaluations.",
                "Error of the samples over evaluations, on logarithmic axes",
            ),
        ],
    )


def curvature(subject: Subject) -> Section:
    """How straight the paths are under the paper's three designs."""
    from ..report.instruments import curvature_plot, trajectory_picture

    seeds = _seeds(subject)
    asked: dict[str, Any] = dict(subject.asked(seeds))
    found = analysis.curvature(subject.denoiser, seeds=seeds, progress=subject.progress, **asked)
    rows = [
        [one.name, f"{one.turning:.1f}", f"{100 * one.stretch:.2f}", f"{100 * one.jump_error:.2f}"]
        for one in found.designs
    ]
    one_number = subject.denoiser.shape is not None and torch.Size(subject.denoiser.shape).numel() == 1
    plain = one_number and not subject.denoiser.label_dim
    panels = analysis.trajectories(subject.denoiser if plain else two_modes())
    names = {by: found.straightest(by) for by in ("turning", "stretch", "jump_error")}
    straight = ", ".join(f"{names[by]} by {word}" for by, word in (
        ("turning", "turning"), ("stretch", "length"), ("jump_error", "what Euler's step does wrong")))  # fmt: skip
    caption = "The model's own paths" if plain else "The paper's picture: one number, either -1 or 1"
    return Section(
        "Curvature",
        "The same solution under the schedules and scalings of three designs. Where a path is straight a solver may "
        f"take long steps. The straightest here: {straight}.",
        found.to_dict(),
        [
            Table(
                "Straightness of the paths",
                ["design", "turning, degrees", "longer than its chord, %", "Euler's error when σ halves, %"],
                rows,
                "Turning and length in a picture whose sides are the time and the RMS displacement; the error relative "
                "to the noise that is removed.",
            )
        ],
        [
            Picture("curvature", curvature_plot(found), "Where the paths turn.", "Turning over noise level", True),
            Picture(
                "trajectories",
                trajectory_picture(panels),
                f"{caption}, under the three designs; in black the tangents an Euler step follows.",
                "Solution trajectories over time with tangents",
                wide=True,
            ),
        ],
    )


def two_modes() -> GaussianMixtureDenoiser:
    """The paper's one-dimensional example: two narrow modes, at -1 and 1."""
    means, std = TWO_DIRACS
    return GaussianMixtureDenoiser(torch.tensor(means, dtype=torch.float64)[:, None], std)


def denoised(subject: Subject) -> Section:
    """What the model makes of noisy data, beside the exact denoiser of them."""
    from ..report.instruments import denoised_plot, denoised_sheet

    y, conditions, known = _some_data(subject)
    data = None if known is None else known.batch(list(range(min(EXACT_LIMIT, len(known)))))
    denoisers: dict[str, Denoiser] = {"model": subject.denoiser}
    beside = subject.denoiser.conditioning is None and not isinstance(subject.denoiser, EmpiricalDenoiser)
    if data is not None and beside:  # of all data: it knows no condition
        denoisers["exact"] = EmpiricalDenoiser(data[0], data[1] if subject.denoiser.label_dim else None)
    levels = torch.logspace(-1.7, 1.9, 24, dtype=torch.float64)
    low, high = subject.denoiser.sigma_min, subject.denoiser.sigma_max
    levels = levels[(levels >= low) & (levels <= high)]
    found = analysis.denoised(
        denoisers, y, data=None if data is None else data[0], sigmas=levels, progress=subject.progress, **conditions
    )
    whose = "data" if data is not None else "the model's own samples"
    pictures = [
        Picture("denoised", denoised_plot(found), "Distance of D to the clean data.", "Distance over noise level")
    ]
    if y.ndim == 4 and y.shape[1] in (1, 3):
        sheet = Picture(
            "denoised-images",
            denoised_sheet(found),
            f"{whose.capitalize()} under growing noise, and what the denoisers make of them.",
            "Noisy images and denoised images by noise level",
        )
        pictures.insert(0, sheet)
    picks = [int((found.sigmas.log() - torch.tensor(s).log()).abs().argmin()) for s in (0.1, 0.3, 1.0, 3.0, 10.0)]
    picks = sorted(set(picks))
    rows = [[c.name, *(short(float(c.error[i]), 2) for i in picks)] for c in found.curves]
    header = ["denoiser", *(f"σ = {short(float(found.sigmas[i]), 2)}" for i in picks)]
    return Section(
        "Denoised",
        f"D(y + σn; σ) for {whose}. At small noise D gives y back, at large noise the mean of all data; between the "
        "two it makes up its mind. The exact denoiser of a finite data set decides for one of its samples early: a "
        "model that follows it all the way has learned its data by heart.",
        found.to_dict(),
        [Table("Distance of D to the clean data, RMS per dimension", header, rows)],
        pictures,
    )


def _some_data(subject: Subject) -> tuple[Tensor, dict[str, Any], Dataset | None]:
    """Held-out data with labels and conditions, and the other half, to be near to; else the model's own samples."""
    if subject.data is None:
        run = sample(subject.denoiser, Sampler(), seeds=_seeds(subject))
        return run.x, {"labels": run.labels}, None
    reference, real = reference_and_real(subject.data)
    rows = range(min(4 * subject.seeds, len(reference)))
    y, labels = reference.batch(rows)
    conditions: dict[str, Any] = dict(image_condition(subject.denoiser, reference, rows, y))
    return y, conditions | {"labels": labels if subject.denoiser.label_dim else None}, real


def decided(subject: Subject) -> Section:
    """Where along the noise levels the samples are decided."""
    from ..report.instruments import decided_plot

    classify, seeds = _classifier(subject.denoiser), _seeds(subject, 4 * subject.seeds)
    asked: dict[str, Any] = dict(subject.asked(seeds))
    found = analysis.decided(subject.denoiser, seeds=seeds, classify=classify, progress=subject.progress, **asked)
    noise = (subject.objective or EDM.objective).noise
    training = analysis.training_density(noise, found.sigmas)
    rows = [
        ["half of the variance is decided at σ", short(found.half)],
        ["D shows half of the sample it ends in at σ", short(found.foreseen_half)],
        ["half of the samples have their class at σ", short(found.settled)],
    ]
    whose = "the model's own" if subject.objective is not None else "EDM's"
    return Section(
        "Where samples are decided",
        "Above that level noise is still open to become anything, below it only detail is left. Steps, stochasticity "
        f"and training effort matter most around it; shaded: {whose} training noise.",
        found.to_dict(),
        [Table("Levels", ["what", "σ"], [row for row in rows if row[1]])],
        [
            Picture(
                "decided",
                decided_plot(found, training),
                "What is decided at each noise level, and the density of decisions.",
                "Share decided over noise level",
            )
        ],
    )


def _classifier(denoiser: Denoiser) -> Any:
    """The shipped classifier where it reads such samples."""
    extractor = extractor_for(denoiser.shape, "digits") if denoiser.shape else None
    if not isinstance(extractor, DigitFeatures):
        return None
    return lambda x: extractor.logits(x.cpu().double()).argmax(1)


def loss(subject: Subject) -> Section:
    """The loss at each noise level, on both halves of the data. Raises ValueError without data."""
    from ..report import loss_plot

    if subject.data is None:
        raise ValueError("loss: needs DATA beside the model")
    reference, real = reference_and_real(subject.data)
    low = max(subject.denoiser.sigma_min, 0.002)
    high = min(subject.denoiser.sigma_max, 80.0)
    sigma = torch.logspace(torch.tensor(low).log10().item(), torch.tensor(high).log10().item(), 24, dtype=torch.float64)
    weighting = EDM.with_sigma_data(subject.data.sigma_data()).objective.weighting
    trained_on = getattr(subject.denoiser, "info", {}).get("data", {}).get("fingerprint")
    first = "training data" if trained_on == real.fingerprint() else "first half"
    halves = {first: real, "held-out half": reference}
    found = {name: analysis.loss_profile(subject.denoiser, half, weighting, sigma) for name, half in halves.items()}
    curves = {name: (profile.mean, profile.error) for name, profile in found.items()}
    gaps = [float(a - b) for a, b in zip(found["held-out half"].mean, found[first].mean, strict=True)]
    rows = [[name, *(short(float(profile.mean[i]), 3) for i in range(2, 24, 5))] for name, profile in found.items()]
    return Section(
        "Loss",
        "The loss of Eq. 8 with EDM's weight, per dimension, on the same noise for both halves. 1 at small σ means "
        "that nothing can be told from noise. Where the halves part, the model remembers what it was trained on.",
        {
            "sigma": sigma.tolist(),
            "profiles": {n: {"mean": p.mean.tolist(), "error": p.error.tolist()} for n, p in found.items()},
            "largest_gap": max(gaps),
        },
        [Table("Loss", ["data", *(f"σ = {short(float(sigma[i]), 2)}" for i in range(2, 24, 5))], rows)],
        [Picture("loss", loss_plot(sigma, curves), "Loss by noise level.", "Loss over noise level, two halves")],
    )
