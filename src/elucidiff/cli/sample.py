"""The command `sample`: samples of a model, one a seed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import show
from .given import ConditionOption, read_condition
from .options import (
    MICRO_BATCH,
    BatchOption,
    DeviceOption,
    GuidanceAsked,
    GuidanceIntervalOption,
    GuidanceOption,
    GuideOption,
    JsonOption,
    LabelsOption,
    ModelArg,
    NfeOption,
    SamplerOption,
    SetOption,
    StepsOption,
    chosen_sampler,
    load_model,
    read_data,
)

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..portions import Portion
    from ..result import Result
    from ..sampler import Sampler

FACTS = ("guidance", "condition", "decoded_from")


def sample(
    model: ModelArg,
    out: Annotated[Path, typer.Option("--out", "--outdir", help="New folder for the samples.", show_default=False)],
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="One sample a seed: 0-63,70. Default: 0-63.", show_default=False)
    ] = None,
    num: Annotated[
        int | None,
        typer.Option("--num", min=1, help="In place of --seeds: 0 to NUM - 1.", show_default=False),
    ] = None,
    sampler: SamplerOption = "edm",
    steps: StepsOption = None,
    nfe: NfeOption = None,
    settings: SetOption = None,
    labels: LabelsOption = None,
    condition: ConditionOption = None,
    guidance: GuidanceOption = None,
    guide: GuideOption = None,
    guidance_interval: GuidanceIntervalOption = None,
    grid: Annotated[Path | None, typer.Option("--grid", help="Also show all samples on one sheet, a PNG.")] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Draw portion I of N (0/N to N-1/N); the last merges.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Draw what is missing of a run that was stopped.")] = False,
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

    With --shard or --resume, and when torchrun starts it, samples are kept in parts in OUT.parts until all are there:
    the same files in the end, by as many processes as there are, each of which may be stopped and started again.

    Example: elucidiff sample exact:digits --seeds 0-15 --steps 18 --set solver=dpmpp_2m --out samples
    Example: elucidiff sample runs/digits --guidance 2 --guide runs/digits/snapshots/000050 --out guided
    Example: elucidiff sample runs/superres --condition small.png --seeds 0-7 --out enlarged
    Example: elucidiff sample runs/digits --seeds 0-49999 --shard 3/8 --out samples
    """
    from ..denoiser import FixedBatch
    from ..files import refuse_existing
    from ..portions import Portion, own_device
    from ..sampler import sample as draw
    from . import parse

    if seeds is not None and num is not None:
        raise ValueError("--num: --seeds says already which and how many; leave one of them out")
    wanted = list(range(num)) if num is not None else parse.seeds(seeds or "0-63")
    portion = Portion.here(shard)
    shared = shard is not None or resume or portion.count > 1
    if not shared or not (out.is_dir() and any(out.iterdir())):  # else it may be what this command wrote
        for place in (out, *([] if grid is None else [grid])):
            refuse_existing(place)
    device = own_device(device)
    denoiser = load_model(model, device)
    churn = {"S_churn": s_churn, "S_min": s_min, "S_max": s_max, "S_noise": s_noise}
    chosen = chosen_sampler(
        denoiser,
        sampler,
        settings,
        steps,
        {"sigma_min": sigma_min, "sigma_max": sigma_max, "timesteps.rho": rho},
        churn,
        nfe,
    )
    wish = GuidanceAsked(guidance, guide, guidance_interval)
    guided = wish.of(denoiser, device)
    image = read_condition(condition, len(wanted), denoiser)
    request: dict[str, Any] = {"seeds": wanted, "labels": parse.labels(labels, len(wanted), denoiser)}
    request |= {} if image is None else {"condition": image}
    if shared:
        notes: dict[str, Any] = {"model": model} | ({} if guided is None else {"guidance": {"guide": guide}})
        notes |= {} if condition is None else {"condition": str(condition)}
        _in_parts(out, guided or denoiser, chosen, request, portion, notes, grid=grid, as_json=as_json)
        return
    result = draw(FixedBatch(guided or denoiser, MICRO_BATCH), chosen, batch_size=batch_size, progress=True, **request)
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
        print(f"{len(result.x)} samples in {out} ({show.cost(result.nfe, facts)} each, {result.seconds:.1f} s)")


def _in_parts(
    out: Path,
    denoiser: Denoiser,
    sampler: Sampler,
    request: dict[str, Any],
    portion: Portion,
    notes: dict[str, Any],
    *,
    grid: Path | None,
    as_json: bool,
) -> None:
    """Draw a portion into OUT.parts, merge if it was the last, and say how far the whole is."""
    from ..portions import first_here
    from ..sharing import sample_into

    found = sample_into(
        out, denoiser, sampler, portion=portion, batch_size=MICRO_BATCH, notes=notes, progress=first_here(), **request
    )
    record = found.record
    if record is not None and grid is not None:
        _late_grid(grid, out, record)
    if as_json:
        facts = {k: record[k] for k in ("nfe", "seconds", *FACTS) if k in record} if record else {}
        standing = {"parts": found.parts, "there": found.there, "drawn": found.drawn, "complete": found.complete}
        show.as_json({"out": str(out), "samples": found.samples} | facts | standing | {"merged": found.merged})
    elif record is None:
        print(
            f"{found.there} of {found.parts} parts are there, in {found.work}: this shard is done; the last merges. "
            "--resume in place of --shard draws whatever is missing"
        )
    else:
        whose = f"{found.drawn} of {found.parts} parts drawn here" if found.drawn else "drawn before"
        cost = f"{show.cost(record['nfe'], record)} each, {record['seconds']:.1f} s"
        print(f"{found.samples:,} samples in {out} ({cost}; {whose})")


def _late_grid(path: Path, out: Path, record: dict[str, Any]) -> None:
    """The sheet of a folder of samples, unless it is there already: the same as from the samples themselves."""
    import torch

    from ..data.images import decode, from_uint8
    from ..files import file_written_atomically
    from ..result import ARRAY, file_names

    if path.exists():
        return
    if (out / ARRAY).is_file():
        with suppress(FileExistsError), file_written_atomically(path) as new:
            show.write_grid(new, read_data(str(out / ARRAY)).tensor())
        return
    files = [out / f"{name}.png" for name in file_names(record["seeds"])]
    pixels = torch.stack([torch.from_numpy(decode(f.read_bytes(), str(f)).copy()) for f in files])
    with suppress(FileExistsError), file_written_atomically(path) as new:  # another process may be faster
        show.write_grid(new, from_uint8(pixels))


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
