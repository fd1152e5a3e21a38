"""Commands that start from data: invert, interpolate, edit."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import show
from .options import (
    BatchOption,
    DataArg,
    DeviceOption,
    JsonOption,
    LabelsOption,
    ModelArg,
    SamplerOption,
    SetOption,
    chosen_sampler,
    load_model,
    read_data,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Dataset
    from ..denoiser import Denoiser
    from ..sampler import Sampler

StepsUpOption = Annotated[int, typer.Option("--steps", min=2, help="Noise levels above 0, on the way up and down.")]
FolderOption = Annotated[
    Path, typer.Option("--out", "--outdir", help="New folder for pictures and samples.", show_default=False)
]
WIDEST = 16  # pictures in a row of a sheet


def invert(
    model: ModelArg,
    data: DataArg,
    out: Annotated[Path, typer.Option("--out", help="New .npz file for the latents.", show_default=False)],
    num: Annotated[int, typer.Option("--num", min=1, help="How many samples, from the first.")] = 64,
    sampler: SamplerOption = "edm",
    steps: StepsUpOption = 100,
    settings: SetOption = None,
    batch_size: BatchOption = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Find the noise that a model turns into given data, and say how exactly the data come back from it.

    The file holds latents (n, ...), labels (n, classes) of a class-conditional model, and the sampler as JSON.

    Example: elucidiff invert runs/digits digits --num 16 --steps 200 --out latents.npz
    """
    from ..files import refuse_existing, write_atomically
    from ..latents import invert as invert_samples
    from ..sampler import sample

    if out.suffix != ".npz":
        raise ValueError(f"--out: got {out}; expected the name of an .npz file")
    refuse_existing(out)
    denoiser = load_model(model, device)
    x, labels = _samples(read_data(data), range(num), denoiser)
    chosen = chosen_sampler(denoiser, sampler, settings, steps)
    common: dict[str, Any] = {"labels": labels, "batch_size": batch_size, "progress": True}
    latents = invert_samples(denoiser, x.to(device), chosen, **common)
    back = sample(denoiser, chosen, latents=latents, **common)
    difference = (back.x.cpu() - x).abs()
    facts: dict[str, Any] = {
        "out": str(out),
        "samples": len(x),
        "nfe_back": back.nfe,
        "rms_difference": float(difference.square().mean().sqrt()),
        "largest_difference": float(difference.max()),
        "latent_std": float(latents.std()),
    }
    write_atomically(out, _npz(latents, labels, chosen, model, data))
    if as_json:
        show.as_json(facts)
    else:
        print(f"{len(x)} latents in {out}, standard deviation {facts['latent_std']:.3f}")
        print(
            f"back by {back.nfe} evaluations: RMS difference {facts['rms_difference']:.1e}, largest "
            f"{facts['largest_difference']:.1e}"
        )


def interpolate(
    model: ModelArg,
    data: DataArg,
    out: FolderOption,
    pairs: Annotated[str, typer.Option("--pairs", help="Samples of the data to join: 0:1,2:3.")] = "0:1,2:3",
    frames: Annotated[int, typer.Option("--frames", min=2, help="Samples a pair, the two ends included.")] = 8,
    sampler: SamplerOption = "edm",
    steps: StepsUpOption = 100,
    settings: SetOption = None,
    batch_size: BatchOption = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Go from one sample of the data to another through the model's latents; a sheet with a row for each pair.

    Latents on a great circle; the labels of a class-conditional model go over in a straight line.

    Example: elucidiff interpolate runs/digits digits --pairs 0:1,2:3 --frames 8 --out between
    """
    import torch

    from ..files import refuse_existing
    from ..latents import interpolate as between
    from ..latents import invert as invert_samples
    from ..sampler import sample

    ends = _pairs(pairs)
    refuse_existing(out)
    denoiser = load_model(model, device)
    x, labels = _samples(read_data(data), [row for pair in ends for row in pair], denoiser)
    chosen = chosen_sampler(denoiser, sampler, settings, steps)
    latents = invert_samples(
        denoiser, x.to(device), chosen, labels=labels, batch_size=batch_size, progress=True
    )  # (2 P, *): first and second of each pair in turn
    path = between(latents[0::2], latents[1::2], frames).transpose(0, 1).flatten(0, 1)
    share = torch.linspace(0, 1, frames)[:, None]
    mixed = None
    if labels is not None:
        mixed = torch.cat([(1 - share) * a + share * b for a, b in zip(labels[0::2], labels[1::2], strict=True)])
    result = sample(denoiser, chosen, latents=path, labels=mixed, batch_size=batch_size, progress=True)
    names = [f"{a} → {b}" for a, b in ends]
    _write(out, {"samples": result}, [result.x], names, frames, model=model, data=data, pairs=ends)
    facts = {"out": str(out), "pairs": len(ends), "frames": frames, "nfe": result.nfe}
    if as_json:
        show.as_json(facts)
    else:
        print(f"{len(ends)} x {frames} samples in {out} (NFE {result.nfe} each)")


def edit(
    model: ModelArg,
    data: DataArg,
    out: FolderOption,
    sigma: Annotated[str, typer.Option("--sigma", help="Noise added, in units of the data; several: 0.5,1,2.")] = "1",
    labels: LabelsOption = None,
    num: Annotated[int, typer.Option("--num", min=1, help="How many samples, from the first.")] = 8,
    first_seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds are this and the following ones.")] = 0,
    sampler: SamplerOption = "edm",
    steps: Annotated[int | None, typer.Option("--steps", help="Noise levels of the whole sampler.")] = None,
    settings: SetOption = None,
    batch_size: BatchOption = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Add noise to given data and sample from there: variations, with other labels edits; a before/after sheet.

    Without --labels a class-conditional model gets those of the data.

    Example: elucidiff edit runs/digits digits --sigma 0.5,1,2 --labels 8 --num 8 --out edited
    """
    from ..files import refuse_existing
    from ..latents import edit as edit_samples
    from . import parse

    strengths = _levels(sigma)
    refuse_existing(out)
    denoiser = load_model(model, device)
    x, own = _samples(read_data(data), range(num), denoiser)
    asked = parse.labels(labels, len(x), denoiser)
    chosen = chosen_sampler(denoiser, sampler, settings, steps)
    common: dict[str, Any] = {
        "seeds": range(first_seed, first_seed + len(x)),
        "labels": own if asked is None else asked,
        "batch_size": min(batch_size, len(x)),
        "progress": True,
    }
    results = {f"sigma-{level:g}": edit_samples(denoiser, x.to(device), chosen, level, **common) for level in strengths}
    rows = [x, *(result.x.to(x) for result in results.values())]
    names = ["data", *(f"σ = {level:g}" for level in strengths)]
    _write(out, results, rows, names, None, model=model, data=data)
    nfe = {name: result.nfe for name, result in results.items()}
    if as_json:
        show.as_json({"out": str(out), "samples": len(x), "sigma": strengths, "nfe": nfe})
    else:
        print(f"{len(x)} samples at {len(strengths)} noise levels in {out} (NFE {max(nfe.values())} each or fewer)")


def _samples(dataset: Dataset, rows: range | list[int], denoiser: Denoiser) -> tuple[Tensor, Tensor | None]:
    """Some samples of the data, and their labels where the model has classes."""
    if isinstance(rows, range):
        rows = list(rows)[: len(dataset)]
    if max(rows) >= len(dataset):
        raise ValueError(f"--pairs: got sample {max(rows)}; the data have 0 to {len(dataset) - 1}")
    x, labels = dataset.batch(rows)
    if denoiser.label_dim and labels is None:
        raise ValueError("data: got none with labels; the model has classes, and needs those of the data")
    return x, labels if denoiser.label_dim else None


def _pairs(text: str) -> list[tuple[int, int]]:
    """Pairs of samples, "0:1,2:3". Raises ValueError saying what a good list looks like."""
    found = [re.fullmatch(r"\s*(\d+):(\d+)\s*", part) for part in text.split(",")]
    pairs = [(int(match[1]), int(match[2])) for match in found if match]
    if len(pairs) != len(found):
        raise ValueError(f"--pairs: cannot read {text!r}; expected pairs of samples such as 0:1,2:3")
    return pairs


def _levels(text: str) -> list[float]:
    """Noise levels, "0.5,1". Raises ValueError saying what a good list looks like."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--sigma: cannot read {text!r}; expected numbers such as 0.5,1,2") from None
    if len({f"{level:g}" for level in found}) != len(found):
        raise ValueError(f"--sigma: {text!r} names a level twice; each may come once")
    return found


def _npz(latents: Tensor, labels: Tensor | None, sampler: Sampler, model: str, data: str) -> bytes:
    import json

    import numpy as np

    arrays = {"latents": latents.cpu().numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    facts = json.dumps({"model": model, "data": data, "sampler": sampler.to_dict()})
    content = io.BytesIO()
    np.savez(content, **arrays, provenance=np.array(facts))  # type: ignore[arg-type]
    return content.getvalue()


def _write(
    out: Path, results: dict[str, Any], rows: list[Tensor], names: list[str], columns: int | None, **notes: Any
) -> None:
    """A folder with the samples of every result and, for images, a sheet: `rows` are cut to the same length."""
    import torch

    from ..files import folder_written_atomically

    columns = min(columns or len(rows[0]), WIDEST) if columns is None else columns
    images = torch.cat([row[:columns] for row in rows]) if len(rows) > 1 else rows[0]
    with folder_written_atomically(out) as new:
        for name, result in results.items():
            result.save(new / name, **notes)
        if images.ndim == 4 and images.shape[1] in (1, 3):
            from ..report import sample_sheet

            (new / "sheet.png").write_bytes(sample_sheet(images, columns, row_labels=names))
