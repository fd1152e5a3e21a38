"""The command `evaluate`: scores of samples beside those of real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import show
from .options import (
    METRICS_HELP,
    BatchOption,
    DataArg,
    DeviceOption,
    FeaturesOption,
    GuidanceAsked,
    GuidanceIntervalOption,
    GuidanceOption,
    GuideOption,
    JsonOption,
    LabelsOption,
    SamplerOption,
    SetOption,
    StepsOption,
    chosen_features,
    chosen_sampler,
    is_model,
    load_model,
    read_data,
)

if TYPE_CHECKING:
    from torch import Tensor


def evaluate(
    model: Annotated[str, typer.Argument(help="A MODEL, or a folder of samples.", show_default=False)],
    data: DataArg,
    metrics: Annotated[str, typer.Option("--metrics", help=METRICS_HELP)] = "fd,kd,agreement",
    features: FeaturesOption = None,
    num: Annotated[int, typer.Option("--num", min=4, help="How many samples to draw from a MODEL.")] = 500,
    heldout: Annotated[float, typer.Option("--heldout", help="The part of the data that is the reference.")] = 0.5,
    first_seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds are this and the following ones.")] = 0,
    sampler: SamplerOption = "edm",
    steps: StepsOption = None,
    settings: SetOption = None,
    labels: LabelsOption = None,
    guidance: GuidanceOption = None,
    guide: GuideOption = None,
    guidance_interval: GuidanceIntervalOption = None,
    batch_size: BatchOption = 256,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Score a model's samples, or a folder of samples, against held-out data, beside the value of real data.

    Example: elucidiff evaluate runs/digits digits --num 500
    Example: elucidiff evaluate runs/mnist mnist-test.zip --features mnist-classifier.json
    """
    from ..analysis import reference_and_real, score_samples

    dataset, extractor = read_data(data), chosen_features(features)
    if extractor is not None:
        extractor.check(dataset.shape)
    reference, real = reference_and_real(dataset, heldout)
    facts: dict[str, Any] = {"model": model, "data": data} | ({"features": extractor.to_dict()} if extractor else {})
    wish = GuidanceAsked(guidance, guide, guidance_interval)
    if Path(model).is_dir() and not is_model(model):
        if any(option is not None for option in wish):
            raise ValueError(f"--guidance: {model} is a folder of samples; only a MODEL can be guided")
        samples, asked = _read_samples(Path(model))
    else:
        samples, asked, more = _drawn(
            model, device, num, first_seed, sampler, steps, settings, labels, wish, batch_size
        )
        facts |= more
    names = [m.strip() for m in metrics.split(",")]
    scores = score_samples(samples, reference, real, labels=asked, metrics=names, extractor=extractor)
    if as_json:
        show.as_json(facts | {"scores": [s.to_dict() for s in scores]})
    else:
        show.scores(scores, reference)
        show.features_note(extractor, dataset)
        if "nfe" in facts:
            first, last = facts["seeds"]
            print(f"{show.cost(facts['nfe'], facts)}, seeds {first} to {last}; the sampler: --json")


def _drawn(
    model: str,
    device: str,
    num: int,
    first_seed: int,
    sampler: str,
    steps: int | None,
    settings: list[str] | None,
    labels: str | None,
    wish: GuidanceAsked,
    batch_size: int,
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Samples of a model for scoring, their labels, and what the scores depend on."""
    from ..sampler import sample as draw
    from . import parse

    denoiser = load_model(model, device)
    chosen = chosen_sampler(denoiser, sampler, settings, steps)
    asked = parse.labels(labels, num, denoiser)
    guided = wish.of(denoiser, device)
    seeds = range(first_seed, first_seed + num)
    result = draw(guided or denoiser, chosen, seeds=seeds, labels=asked, batch_size=min(batch_size, num), progress=True)
    facts = {"sampler": chosen.to_dict(), "nfe": result.nfe, "seeds": [first_seed, first_seed + num - 1]}
    return result.x.cpu(), result.labels, facts | wish.facts(guided, result.nfe)


def _read_samples(folder: Path) -> tuple[Tensor, Tensor | None]:
    """Samples and asked labels of a folder that `sample` wrote; any folder of images without labels."""
    import torch

    from .. import data as datasets

    array = folder / "samples.npz"
    samples = _npz_samples(array) if array.is_file() else datasets.load(folder).tensor()
    provenance = folder / "samples.json"
    labels = json.loads(provenance.read_text()).get("labels") if provenance.is_file() else None
    return samples, None if labels is None else torch.tensor(labels)


def _npz_samples(path: Path) -> Tensor:
    import numpy as np
    import torch

    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["samples"])
