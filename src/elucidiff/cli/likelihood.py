"""The command that measures likelihood: bits per dimension of held-out and of training data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import show
from .options import BatchOption, DataArg, DeviceOption, JsonOption, ModelArg, SetOption, load_model, read_data

if TYPE_CHECKING:
    from ..analysis import BitsPerDim
    from ..data import Dataset
    from ..denoiser import Denoiser
    from ..sampler import Sampler


def likelihood(
    model: ModelArg,
    data: DataArg,
    num: Annotated[int, typer.Option("--num", min=2, help="How many samples of each part, at random.")] = 64,
    probes: Annotated[int, typer.Option("--probes", min=1, help="Probes of the trace for each sample.")] = 4,
    steps: Annotated[int | None, typer.Option("--steps", help="Noise levels; 32, each a step of RK4.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="The exact trace, for few dimensions; no probes.")] = False,
    tolerance: Annotated[float | None, typer.Option("--tolerance", help="Adaptive steps instead, e.g. 1e-5.")] = None,
    levels: Annotated[int | None, typer.Option("--levels", help="Of discrete data; 256 for images.")] = None,
    heldout: Annotated[
        float | None, typer.Option("--heldout", help="The part of the data held out. Default: as in training, or 0.5.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice of samples, their noise, the probes.")] = 0,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help="edm, vp, ve, iddpm, model (its own), or a .json file.")
    ] = None,
    settings: SetOption = None,
    batch_size: BatchOption = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure how probable a model finds data, in bits per dimension, held out and trained on; memorising shows.

    The digits have 17 grey levels, so for them say --levels 17.

    Example: elucidiff likelihood runs/digits digits --levels 17 --num 64 --probes 4
    """
    from ..analysis import bits_per_dim

    denoiser = load_model(model, device)
    chosen = _sampler(denoiser, sampler, steps, settings)
    parts = _parts(denoiser, read_data(data), heldout)
    options: dict[str, Any] = {"probes": probes, "trace": "exact" if exact else "rademacher", "tolerance": tolerance}
    found = {}
    for name, part in parts.items():
        found[name] = bits_per_dim(
            denoiser,
            _chosen(part, num, seed),
            chosen,
            levels=levels,
            seed=seed,
            batch_size=min(batch_size, num),
            progress=True,
            **options,
        )
    if as_json:
        facts = {"model": model, "data": data, "sampler": chosen.to_dict(), "seed": seed} | options
        show.as_json(facts | {"parts": {name: _facts(b) for name, b in found.items()}})
    else:
        _print(found, {name: len(part) for name, part in parts.items()}, conditional=bool(denoiser.label_dim))


def _sampler(denoiser: Denoiser, name: str | None, steps: int | None, settings: list[str] | None) -> Sampler:
    from ..analysis.likelihood import DEFAULT
    from . import parse

    base = DEFAULT if name is None else parse.sampler(name, denoiser)
    return parse.apply_settings(base, [*([] if steps is None else [f"steps={steps}"]), *(settings or [])])


def _parts(denoiser: Denoiser, dataset: Dataset, heldout: float | None) -> dict[str, Dataset]:
    """The parts of the data by name: held out, and the rest, called training where the model says so."""
    trained_on = getattr(denoiser, "info", {}).get("data", {})
    if heldout is None:
        heldout = float(trained_on.get("heldout", 0.5))
    parts = {"all": dataset}
    if heldout:
        rest, kept = dataset.split(heldout)
        parts = {"held out": kept, "rest": rest}
    digest = trained_on.get("fingerprint")
    return {
        ("training" if digest is not None and part.fingerprint() == digest else name): part
        for name, part in parts.items()
    }


def _chosen(part: Dataset, num: int, seed: int) -> Dataset:
    from ..seeds import Stream, keyed

    return part.subset(keyed(seed, Stream.SPLIT, 1).permutation(len(part))[:num])


def _facts(bits: BitsPerDim) -> dict[str, Any]:
    found = bits.likelihood
    return {
        "bits_per_dim": bits.value,
        "error": bits.error,
        "n": bits.n,
        "levels": bits.levels,
        "nats": float(found.values.mean()),
        "probe_error_nats": None if found.errors is None else float(found.errors.square().mean().sqrt()),
        "nfe": found.nfe,
        "products": found.backward,
        "sigma_min": found.sigma_min,
        "sigma_max": found.sigma_max,
    }


def _print(found: dict[str, BitsPerDim], sizes: dict[str, int], *, conditional: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    first = next(iter(found.values()))
    what = f"{first.levels} levels, dequantised" if first.levels else "density"
    table = Table(title=f"negative log likelihood{' given the label' if conditional else ''} ({what})")
    for column in ("data", "bits/dim", "nats a sample", "probes' error", "samples"):
        table.add_column(column, justify="left" if column == "data" else "right")
    for name, bits in found.items():
        error = "" if bits.error is None else f" ± {bits.error:.2g}"
        probes = bits.likelihood.errors
        spread = "?" if probes is None else f"{float(probes.square().mean().sqrt()):.2g}"
        nats = f"{float(-bits.likelihood.values.mean()):.2f}"
        table.add_row(name, f"{bits.value:.4f}{error}", nats, spread, f"{bits.n} of {sizes[name]}")
    Console().print(table)
    run = first.likelihood
    print(
        f"NFE {run.nfe} and {run.backward} vector-Jacobian products each, sigma {run.sigma_min:g} to {run.sigma_max:g}"
    )
