"""The command `sample`: samples of a model, one a seed."""

from __future__ import annotations

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
    SamplerOption,
    SetOption,
    StepsOption,
    chosen_sampler,
    load_model,
)

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..result import Result


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
        print(f"{len(result.x)} samples in {out} ({show.cost(result.nfe, facts)} each, {result.seconds:.1f} s)")


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
