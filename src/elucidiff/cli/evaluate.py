"""The command `evaluate`: scores of samples beside those of real data, and all that they depend on."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import show
from .evaluate_asked import Asked, guidance_facts, source_of, yardstick
from .evaluate_show import print_evaluation
from .given import ConditionOption
from .options import (
    METRICS_HELP,
    BatchOption,
    DeviceOption,
    FeaturesOption,
    GuidanceAsked,
    GuidanceIntervalOption,
    GuidanceOption,
    GuideOption,
    JsonOption,
    LabelsOption,
    NfeOption,
    SamplerOption,
    SetOption,
    StepsOption,
)

if TYPE_CHECKING:
    from ..analysis.evaluation import Evaluation
    from ..analysis.evaluation_sources import Source
    from ..analysis.evaluation_work import Work
    from ..portions import Portion
    from .evaluate_asked import Yardstick

ReferenceOption = Annotated[
    Path | None,
    typer.Option("--reference", metavar="FILE", help="Statistics instead of data: .npz or .pkl with mu and sigma."),
]


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A MODEL; or samples: a folder, a .zip, .npz or .npy.", show_default=False)
    ],
    data: Annotated[
        str | None, typer.Argument(help="DATA, held-out and real; not needed with --reference.", show_default=False)
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help=METRICS_HELP + " Default: fd,kd,agreement.", show_default=False)
    ] = None,
    features: FeaturesOption = None,
    num: Annotated[
        int | None, typer.Option("--num", min=5, help="Samples a repeat. Default: 500 of a MODEL, all of a folder.")
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Repeats, each with seeds of its own.")] = 1,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="In place of --num and --seed: 0-49999.", show_default=False)
    ] = None,
    first_seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds are this and the following ones.")] = 0,
    heldout: Annotated[float, typer.Option("--heldout", help="The part of the data that is the reference.")] = 0.5,
    reference: ReferenceOption = None,
    key: Annotated[str | None, typer.Option("--key", help="Which statistics of a .pkl with several: fid.")] = None,
    sampler: SamplerOption = "edm",
    steps: StepsOption = None,
    nfe: NfeOption = None,
    settings: SetOption = None,
    labels: LabelsOption = None,
    condition: ConditionOption = None,
    guidance: GuidanceOption = None,
    guide: GuideOption = None,
    guidance_interval: GuidanceIntervalOption = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="Folder for finished chunks; a stopped evaluation goes on from it.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Compute portion I of N (0/N to N-1/N) into --work.")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Score every snapshot of a run directory.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also a .json file; RUN/evaluation*.json is shown on RUN's card.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", help="New folder: nearest neighbours, best and worst samples; or the sweep."),
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="New folder for the samples, as of `sample`.")] = None,
    batch_size: BatchOption = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Score a model's samples, or those in a folder or file, against held-out data, beside the value of real data.

    Samples stay in memory unless --save names a folder. With --work an evaluation can be stopped and started again,
    and shared by processes (--shard, torchrun): the numbers are the same to the last digit. A model that needs
    images or vectors is given those of the data that are no reference, or --condition and --labels.

    Example: elucidiff evaluate runs/digits digits --num 500 --repeat 3
    Example: elucidiff evaluate runs/mnist mnist-test.zip --features judge.json --out runs/mnist/evaluation.json
    Example: elucidiff evaluate MODEL --reference cifar10-32x32.npz --features inception:FILE --num 50000 --work DIR
    Example: elucidiff evaluate runs/digits digits --sweep --pictures swept
    """
    from ..portions import Portion
    from .evaluate_sweep import sweep_snapshots

    wish = GuidanceAsked(guidance, guide, guidance_interval)
    asked = Asked(
        data, reference, key, metrics, features, num, repeat, seeds, first_seed, heldout, sampler, steps, nfe, settings,
        labels, condition, wish, batch_size, device,
    )  # fmt: skip
    portion = Portion.here(shard)
    _check_places(portion, work, out, pictures, save)
    rule = yardstick(asked)
    if sweep:
        if save is not None:
            raise ValueError("--save: writes the samples of one model; leave it out of a --sweep")
        sweep_snapshots(Path(model), asked, rule, portion, (work, out, pictures), as_json=as_json)
        return
    source, facts = source_of(model, asked, rule)
    if save is not None and "samples" in facts:
        raise ValueError("--save: these samples are in files already; leave it out")
    if pictures is not None:
        _check_shown(source, rule)
    evaluation, done = run(source, facts, asked, rule, portion, work, keep=save is not None)
    if evaluation is None:
        tell_missing(work, len(done.missing()), done.chunks, as_json=as_json)
        return
    told = _write_all(evaluation, source, done, rule, asked, (pictures, save, out), shared=portion.count > 1)
    if as_json:
        show.as_json(evaluation.to_dict())
    else:
        print_evaluation(evaluation, rule.data)
        print("\n".join(told), end="\n" if told else "")


def run(
    source: Source,
    facts: dict[str, Any],
    asked: Asked,
    rule: Yardstick,
    portion: Portion,
    work: Path | None,
    *,
    keep: bool = False,
    what: str = "evaluating",
) -> tuple[Evaluation | None, Work]:
    """Compute this process's chunks; the scores, when all are there. keep: the samples, too."""
    from ..analysis.evaluation import begin, collect, conclude, keeps_images
    from ..portions import first_here
    from ..progress import bar

    extractor = rule.of(source.shape)
    if rule.data is not None and source.shape != rule.data.shape:
        raise ValueError(f"the samples have shape {source.shape}, the data {rule.data.shape}")
    images = keep or keeps_images(rule.metrics)
    done = begin(source, extractor, images=images, path=work)
    with bar(what, first_here()) as report:
        where = asked.own_device
        collect(source, extractor, done, images=images, portion=portion, device=where, progress=report)
    if done.missing():
        return None, done
    nfe = done.joined("nfe")
    facts = facts | guidance_facts(asked, source, None if nfe is None else int(nfe.max()))
    facts |= {} if asked.data is None else {"data": asked.data}
    judge = rule.judge(asked, len(source) // asked.repeat, extractor)
    found = conclude(source, done, judge, asked.repeat, facts)
    return found if asked.metrics is None else _telling_gaps(found, rule.metrics), done


def _telling_gaps(found: Evaluation, metrics: tuple[str, ...]) -> Evaluation:
    """With a caution for metrics that were asked for and could not be measured."""
    from dataclasses import replace

    gaps = [metric for metric in metrics if metric not in {score.each[0].metric for score in found.scores}]
    if not gaps:
        return found
    text = f"not measured: {', '.join(gaps)}; that needs --features that name the classes asked for"
    return replace(found, warnings=(*found.warnings, text))


def _check_shown(source: Source, rule: Yardstick) -> None:
    """Raise ValueError where there is nothing to draw."""
    if rule.data is None:
        raise ValueError("--pictures: shows the nearest of DATA; name them too")
    if len(source.shape) != 3 or source.shape[0] not in (1, 3):
        raise ValueError(f"--pictures: samples of shape {source.shape} are not images; leave it out")


def _check_places(portion: Portion, work: Path | None, out: Path | None, *folders: Path | None) -> None:
    """Raise, before anything is drawn, where results could not be written, or processes share no folder."""
    import importlib.util

    from ..errors import MissingExtraError
    from ..files import refuse_existing

    if portion.count > 1 and work is None:
        raise ValueError(f"--shard: {portion.count} processes need --work DIR, one folder for all")
    if out is not None and out.suffix != ".json":
        raise ValueError(f"--out: got {out}; the numbers are written to a .json file")
    for place in (None if work is not None else out, *(folders if portion.count == 1 else ())):
        if place is not None:  # an --out that a stopped evaluation left is compared at the end
            refuse_existing(place)
    if folders[0] is not None and importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")


def tell_missing(work: Path | None, missing: int, chunks: int, *, as_json: bool) -> None:
    """Say how far an evaluation is whose scores must wait for other processes."""
    if as_json:
        show.as_json({"work": str(work), "chunks": chunks, "missing": missing})
        return
    print(
        f"{chunks - missing} of {chunks} chunks are in {work}; start the other shards, or this command without "
        "--shard, which computes what is missing"
    )


def _write_all(
    evaluation: Evaluation,
    source: Source,
    done: Work,
    rule: Yardstick,
    asked: Asked,
    places: tuple[Path | None, Path | None, Path | None],
    *,
    shared: bool,
) -> list[str]:
    """Write what was asked for to --pictures, --save and --out; what was written, in words."""
    from ..analysis.evaluation_neighbours import shown
    from ..report.evaluation import write_evaluation_pictures

    pictures, save, out = places
    told = []
    with suppress(*([FileExistsError] if shared else [])):  # another of the processes was faster
        if pictures is not None and rule.data is not None:
            write_evaluation_pictures(pictures, shown(source, done, rule.of(source.shape), *rule.parts(asked.heldout)))
            told.append(f"pictures: {pictures}")
        if save is not None:
            _save(save, source, done, evaluation)
            told.append(f"samples: {save}")
    if out is not None:
        write_numbers(out, evaluation.to_dict())
        told.append(f"numbers: {out}")
    return told


def write_numbers(out: Path, numbers: dict[str, Any]) -> None:
    """Write JSON data; the same content may be there. Raises FileExistsError for another."""
    from ..files import write_atomically

    content = (json.dumps(numbers, indent=1) + "\n").encode()
    if out.exists() and out.read_bytes() != content:
        raise FileExistsError(f"{out} holds other numbers than these; name another file or remove it")
    write_atomically(out, content)


def _save(folder: Path, source: Source, done: Work, evaluation: Evaluation) -> None:
    """The samples, as the command `sample` writes them."""
    from ..analysis.evaluation import sides_of
    from ..analysis.evaluation_sources import FromModel
    from ..result import Result

    if not isinstance(source, FromModel):
        raise ValueError("--save: these samples are in files already; leave it out")
    (side,) = sides_of(source, done, evaluation.extractor, len(source))
    facts = {name: value for name, value in evaluation.facts.items() if name in ("model", "guidance", "condition")}
    sigmas = source.sampler.sigmas(source.denoiser)
    nfe = evaluation.facts["nfe"]
    Result(side.x, nfe, 0.0, source.seeds, side.labels, source.sampler, sigmas).save(folder, **facts)
