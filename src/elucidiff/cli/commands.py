"""The commands. Each parses its strings, calls the library, and prints; imports inside keep --help fast."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import show
from .ablate import ablate
from .analyze import analyze
from .classifier import classifier
from .compare import compare
from .ema import ema
from .given import ConditionOption, read_condition
from .latents import edit, interpolate, invert
from .leak import leak
from .likelihood import likelihood
from .options import (
    METRICS_HELP,
    MICRO_BATCH,
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
    ModelArg,
    SamplerOption,
    SetOption,
    StepsOption,
    chosen_features,
    chosen_sampler,
    is_model,
    load_model,
    read_data,
)
from .prepare import prepare
from .restore import restore
from .train import train

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoiser import Denoiser
    from ..result import Result


def table1(as_json: JsonOption = False) -> None:
    """Print Table 1 of the EDM paper from the code.

    Example: elucidiff table1
    """
    from ..design import PRESETS, compare_designs

    if as_json:
        show.as_json({name: design.to_dict() for name, design in PRESETS.items()})
    else:
        print(compare_designs(*PRESETS.values()))


def sample(
    model: ModelArg,
    out: Annotated[Path, typer.Option("--out", "--outdir", help="New folder for the samples.", show_default=False)],
    seeds: Annotated[str, typer.Option("--seeds", help="One sample a seed: 0-63,70.")] = "0-63",
    sampler: SamplerOption = "edm",
    steps: StepsOption = None,
    settings: SetOption = None,
    labels: LabelsOption = None,
    condition: ConditionOption = None,
    guidance: GuidanceOption = None,
    guide: GuideOption = None,
    guidance_interval: GuidanceIntervalOption = None,
    grid: Annotated[Path | None, typer.Option("--grid", help="Also write all images on one sheet, a PNG.")] = None,
    batch_size: BatchOption = 64,
    device: DeviceOption = "cpu",
    sigma_min: Annotated[float | None, typer.Option("--sigma-min", "--sigma_min", help="Lowest noise level.")] = None,
    sigma_max: Annotated[float | None, typer.Option("--sigma-max", "--sigma_max", help="Highest noise level.")] = None,
    rho: Annotated[float | None, typer.Option("--rho", help="Exponent of the EDM time steps.")] = None,
    s_churn: Annotated[float | None, typer.Option("--S_churn", help="Stochasticity strength.")] = None,
    s_min: Annotated[float | None, typer.Option("--S_min", help="Stochasticity from this noise level.")] = None,
    s_max: Annotated[float | None, typer.Option("--S_max", help="Stochasticity up to this noise level.")] = None,
    s_noise: Annotated[float | None, typer.Option("--S_noise", help="Stochasticity noise inflation.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw samples from a model, one a seed, as PNG files (or samples.npz) with their provenance.

    Example: elucidiff sample exact:digits --seeds 0-15 --steps 18 --set solver=dpmpp_2m --out samples
    Example: elucidiff sample runs/digits --guidance 2 --guide runs/digits/snapshots/000050 --out guided
    Example: elucidiff sample runs/superres --condition small.png --seeds 0-7 --out enlarged
    """
    from ..denoiser import FixedBatch
    from ..files import refuse_existing
    from ..sampler import sample as draw
    from . import parse

    wanted = parse.seeds(seeds)
    refuse_existing(out)
    if grid is not None:
        refuse_existing(grid)
    denoiser = load_model(model, device)
    churn = {"S_churn": s_churn, "S_min": s_min, "S_max": s_max, "S_noise": s_noise}
    chosen = chosen_sampler(
        denoiser,
        sampler,
        settings,
        steps,
        {"sigma_min": sigma_min, "sigma_max": sigma_max, "timesteps.rho": rho},
        churn,
    )
    wish = GuidanceAsked(guidance, guide, guidance_interval)
    guided = wish.of(denoiser, device)
    image = read_condition(condition, len(wanted), denoiser)
    conditions: dict[str, Any] = {} if image is None else {"condition": image}
    result = draw(
        FixedBatch(guided or denoiser, MICRO_BATCH),
        chosen,
        seeds=wanted,
        labels=parse.labels(labels, len(wanted), denoiser),
        batch_size=batch_size,
        progress=True,
        **conditions,
    )
    facts = wish.facts(guided, result.nfe) | ({} if condition is None else {"condition": str(condition)})
    result, decoding = _decoded(denoiser, result)
    facts |= decoding
    result.save(out, model=model, **facts)
    if grid is not None:
        show.write_grid(grid, result.x)
    if as_json:
        show.as_json(
            {"out": str(out), "samples": len(result.x), "nfe": result.nfe, "seconds": round(result.seconds, 3)} | facts
        )
    else:
        print(f"{len(result.x)} samples in {out} ({_cost(result.nfe, facts)} each, {result.seconds:.1f} s)")


def inspect(
    data: DataArg,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Also write the first 64 images on one sheet, a PNG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a data set, model or file of weights: shape, range, sigma_data, classes, the design that follows.

    Of data also the first samples, the mean and deviation of each channel, duplicates, and how many are in each class.
    Of a file of weights also what it would execute if it were unpickled; here nothing of it is.

    Example: elucidiff inspect digits --sheet digits.png
    """
    from ..data.sources import is_named_data
    from ..foreign import is_foreign

    if is_named_data(data) or sheet is not None:
        dataset = read_data(data)
        if sheet is not None:
            show.data_sheet(sheet, dataset)
        show.data(dataset, data, machine=as_json)
    elif Path(data).is_file() and is_foreign(data):
        show.foreign(data, machine=as_json)
    elif is_model(data):
        show.model(load_model(data, "cpu"), data, machine=as_json)
    else:
        show.data(read_data(data), data, machine=as_json)


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
            print(
                f"{_cost(facts['nfe'], facts)}, seeds {facts['seeds'][0]} to {facts['seeds'][1]}; the sampler: --json"
            )


def convert(
    source: Annotated[str, typer.Argument(help="Any MODEL that is a network.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="New directory; owner/name with --to hub.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="native, diffusers or hub.")] = "native",
) -> None:
    """Write a model in another format.

    native: a model directory of ours, from any network that can be read. diffusers: a folder of that library, from
    models that came from it. hub: a native model with its card, uploaded to owner/name.

    Example: elucidiff convert runs/digits models/digits
    Example: elucidiff convert models/imported pipeline --to diffusers
    """
    from ..errors import unknown
    from ..files import refuse_existing

    if to not in ("native", "diffusers", "hub"):
        raise ValueError(unknown("format", to, ["native", "diffusers", "hub"]))
    if to != "hub":
        refuse_existing(out)
    denoiser = load_model(source, "cpu")
    if to == "hub":
        from ..publish import push

        print(f"uploaded to {push(denoiser, out.as_posix())}")
        return
    if to == "diffusers":
        from ..adapters.diffusers import save as save_for_diffusers

        save_for_diffusers(denoiser, out)
    else:
        from ..models import save

        save(denoiser, out)
    print(f"wrote {out}")


def demo(
    out: Annotated[Path, typer.Option("--out", help="New run directory.")] = Path("runs/demo"),
    images: Annotated[int | None, typer.Option("--images", help="Shorter or longer training.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of training.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Real digits -> a trained model, its samples, their scores and a report: the whole library in five minutes.

    Example: elucidiff demo
    """
    from ..demo import run_demo

    outcome = run_demo(
        out, images=images, seed=seed, say=lambda text: print(text, file=sys.stderr if as_json else sys.stdout)
    )
    if as_json:
        show.as_json(outcome)


def bench(
    what: Annotated[str, typer.Argument(help="solvers.")],
    problems: Annotated[
        Path, typer.Option("--problems", help="Folder of the benchmark's problems.", show_default=False)
    ],
    nfe: Annotated[str, typer.Option("--nfe", help="Budgets of network evaluations.")] = "5,6,8,10,12,16,20,35,36",
    out: Annotated[Path | None, typer.Option("--out", help="Folder whose benchmarks.md gets the tables.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything measured to a file.")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit the defaults' time steps anew (20 minutes).")] = False,
) -> None:
    """Measure how exact each sampler is for a number of network evaluations, beside the best peers.

    Example: elucidiff bench solvers --problems ../shared/data/solver_problems --nfe 5,6,8,10
    """
    from ..bench import run_solvers
    from ..errors import unknown
    from . import parse

    if what != "solvers":
        raise ValueError(unknown("benchmark", what, ["solvers"]))
    budgets = parse.integers(nfe, "nfe")
    print(run_solvers(problems, budgets, out=out, json_file=json_file, fit=fit))


ALL: dict[str, Callable[..., None]] = {
    "demo": demo,
    "table1": table1,
    "inspect": inspect,
    "prepare": prepare,
    "train": train,
    "sample": sample,
    "ablate": ablate,
    "restore": restore,
    "classifier": classifier,
    "evaluate": evaluate,
    "compare": compare,
    "ema": ema,
    "analyze": analyze,
    "convert": convert,
    "invert": invert,
    "interpolate": interpolate,
    "edit": edit,
    "likelihood": likelihood,
    "leak": leak,
    "bench": bench,
}


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


def _decoded(denoiser: Denoiser, result: Result) -> tuple[Result, dict[str, Any]]:
    """The result of a latent model with pictures in place of latents, and what the provenance says of it."""
    from dataclasses import replace

    import torch

    from ..progress import bar

    pictures = []
    with bar("decoding", len(result.x) > MICRO_BATCH) as report:
        for latents in result.x.split(MICRO_BATCH):
            pictures.append(denoiser.decode(latents))
            if pictures[0] is latents:  # nothing to decode
                return result, {}
            report(sum(len(p) for p in pictures), len(result.x))
    return replace(result, x=torch.cat(pictures)), {"decoded_from": list(result.x.shape)}


def _cost(nfe: int, facts: dict[str, Any]) -> str:
    """NFE 35; with guidance, how many evaluations of networks that is: two of them answer within the interval."""
    guidance = facts.get("guidance")
    return f"NFE {nfe}" + (f", {guidance['network_evaluations']:g} network evaluations" if guidance else "")


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
