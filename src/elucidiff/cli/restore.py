"""`elucidiff restore`: held-out images degraded and restored, by one method or several, with scores and a sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import show
from .options import (
    MICRO_BATCH,
    BatchOption,
    DataArg,
    DeviceOption,
    JsonOption,
    ModelArg,
    SamplerOption,
    SetOption,
    StepsOption,
    chosen_sampler,
    load_model,
    read_data,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..posterior import Operator, Posterior, Region, RestorationScore
    from ..result import Result
    from ..sampler import Sampler

TASKS = ("inpaint", "deblur", "superres")
SHEET_COLUMNS, SHEET_SAMPLES = 12, 3


@dataclass(frozen=True)
class _Restored:
    """What one method made: `each` samples of every image in a row, and their scores."""

    result: Result
    score: RestorationScore
    off: float  # largest |A x - y|


def restore(
    model: ModelArg,
    data: DataArg,
    out: Annotated[Path, typer.Option("--out", "--outdir", help="New folder for the images.", show_default=False)],
    task: Annotated[str, typer.Option("--task", help="inpaint, deblur or superres.")] = "inpaint",
    method: Annotated[
        str, typer.Option("--method", help="moment, pigdm, dps, replacement; several: moment,replacement.")
    ] = "moment",
    num: Annotated[int, typer.Option("--num", min=1, help="How many held-out images.")] = 16,
    each: Annotated[int, typer.Option("--each", min=1, help="Restorations of each image.")] = 4,
    mask: Annotated[
        str, typer.Option("--mask", help="inpaint: box:0.5 (the hole), half:left, random:0.5 (what is known).")
    ] = "half:left",
    blur: Annotated[float, typer.Option("--blur", help="deblur: standard deviation in pixels.")] = 1.0,
    factor: Annotated[int, typer.Option("--factor", help="superres: pixels a side that one is the mean of.")] = 2,
    noise: Annotated[
        float | None,
        typer.Option("--noise", help="Of the measurement, images in [-1, 1]. Default: 0, for deblur 0.05."),
    ] = None,
    heldout: Annotated[float, typer.Option("--heldout", help="The part of the data to take images from.")] = 0.5,
    first_seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds are this and the following ones.")] = 0,
    sampler: SamplerOption = "edm",
    steps: StepsOption = None,
    settings: SetOption = None,
    batch_size: BatchOption = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Degrade held-out images, restore them, and score the restorations against the originals.

    A class-conditional model is told the class of each image. Scores are over the unknown part (inpaint) or all
    pixels; the energy score is strictly proper: only samples of the true posterior have the smallest.

    Example: elucidiff restore runs/digits digits --task inpaint --mask half --method moment,replacement --out restored
    """
    import torch

    from ..analysis import reference_and_real
    from ..files import refuse_existing
    from ..posterior import score_restorations, unknown_part

    refuse_existing(out)
    methods = _methods(method)
    operator = _operator(task, mask, blur, factor, first_seed)
    noise = (0.05 if task == "deblur" else 0.0) if noise is None else noise
    reference, _ = reference_and_real(read_data(data), heldout)
    denoiser = load_model(model, device)
    chosen = chosen_sampler(denoiser, sampler, settings, steps)
    truth, labels = reference.batch(torch.linspace(0, len(reference) - 1, min(num, len(reference))).long())
    unknown_part(operator, tuple(truth.shape[1:]))
    truth = truth.double()
    measurement = operator.measure(truth, noise, first_seed)
    restored = {}
    for name, method_class in methods.items():
        posterior = method_class(denoiser, operator, noise)
        result = _draw(posterior, chosen, measurement, labels, each, first_seed, batch_size)
        x = result.x.cpu()
        off = float((operator.apply(x) - measurement.repeat_interleave(each, 0)).abs().max())
        restored[name] = _Restored(result, score_restorations(x, truth, operator), off)
    facts = {
        "model": model, "data": data, "task": task, "operator": operator.to_dict(), "noise": noise,
        "images": len(truth), "each": each, "heldout": heldout,
        "seeds": [first_seed, first_seed + len(truth) * each - 1], "sampler": chosen.to_dict(),
        "methods": {name: _facts(r) for name, r in restored.items()},
    }  # fmt: skip
    _write(out, operator, truth, measurement, {name: r.result.x.cpu() for name, r in restored.items()}, facts)
    if as_json:
        show.as_json({"out": str(out)} | facts)
    else:
        _print_table(f"{task} of {len(truth)} held-out images, {each} restorations each", restored)
        print(f"written to {out}")


def _methods(text: str) -> dict[str, type[Posterior]]:
    from ..errors import unknown
    from ..posterior import METHODS

    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METHODS:
            raise ValueError(unknown("method", name, METHODS))
    return {name: METHODS[name] for name in names}


def _operator(task: str, mask: str, blur: float, factor: int, seed: int) -> Operator:
    from .. import posterior
    from ..errors import unknown

    if task not in TASKS:
        raise ValueError(unknown("task", task, TASKS))
    if task == "deblur":
        return posterior.Blur(blur)
    return posterior.Downsample(factor) if task == "superres" else posterior.Mask(_region(mask, seed))


def _region(text: str, seed: int) -> Region:
    """A region by its name and its one parameter: box, box:0.5, half:left, random:0.3."""
    from .. import posterior
    from ..errors import unknown

    kind, _, rest = text.partition(":")
    if kind == "half":
        return posterior.Half(rest or "left")  # type: ignore[arg-type]  # checked by the constructor
    if kind not in ("box", "random"):
        raise ValueError(unknown("mask", kind, ["box", "half", "random"]))
    try:
        share = float(rest or 0.5)
    except ValueError:
        raise ValueError(f"--mask: got {text!r}; expected a fraction after the colon, as in {kind}:0.5") from None
    return posterior.Box(share) if kind == "box" else posterior.Random(share, seed)


def _draw(
    posterior: Posterior,
    sampler: Sampler,
    measurement: Tensor,
    labels: Tensor | None,
    each: int,
    first_seed: int,
    batch_size: int,
) -> Result:
    """`each` samples of every measurement, in a row; a model with classes is told those of the data."""
    from ..denoiser import FixedBatch
    from ..sampler import sample

    n = len(measurement) * each
    told = labels if posterior.label_dim else None
    return sample(
        FixedBatch(posterior, MICRO_BATCH),
        sampler,
        seeds=range(first_seed, first_seed + n),
        labels=None if told is None else told.repeat_interleave(each, 0),
        batch_size=batch_size,
        progress=True,
        measurement=measurement.repeat_interleave(each, 0),
    )


def _facts(restored: _Restored) -> dict[str, Any]:
    result = restored.result
    return restored.score.to_dict() | {
        "nfe": result.nfe,
        "seconds": round(result.seconds, 3),
        "largest deviation from the measurement": restored.off,
    }


def _write(
    out: Path,
    operator: Operator,
    truth: Tensor,
    measurement: Tensor,
    restored: Mapping[str, Tensor],
    facts: dict[str, Any],
) -> None:
    """PNG files and sheet.png of images, arrays.npz of anything, and restore.json."""
    import numpy as np

    from ..files import folder_written_atomically

    degraded = measurement if measurement.shape == truth.shape else operator.solve(measurement)
    with folder_written_atomically(out) as new:
        arrays = {"truth": truth, "measurement": measurement, **restored}
        np.savez(new / "arrays.npz", **{name: x.numpy() for name, x in arrays.items()})  # type: ignore[arg-type]
        if truth.ndim == 4 and truth.shape[1] in (1, 3):
            _write_images(new, {"truth": truth, "degraded": degraded, **restored}, len(truth))
            (new / "sheet.png").write_bytes(_sheet(truth, degraded, restored))
        (new / "restore.json").write_text(json.dumps(facts, indent=1) + "\n")


def _write_images(folder: Path, groups: Mapping[str, Tensor], n: int) -> None:
    """A folder a group: 0003.png of image 3, 0003-1.png of its second restoration."""
    from ..data.writing import write_image

    for name, images in groups.items():
        (folder / name).mkdir()
        each = len(images) // n
        for i, image in enumerate(images):
            number = f"{i // each:04d}" + (f"-{i % each}" if name not in ("truth", "degraded") else "")
            write_image(folder / name / f"{number}.png", image)


def _sheet(truth: Tensor, degraded: Tensor, restored: Mapping[str, Tensor]) -> bytes:
    """Rows: the originals, what was measured, and up to three restorations by each method."""
    import torch

    from ..report import sample_sheet

    n = min(len(truth), SHEET_COLUMNS)
    rows: list[torch.Tensor] = [truth[:n], degraded[:n]]
    labels = ["original", "degraded"]
    for name, x in restored.items():
        samples = x.unflatten(0, (len(truth), -1))[:n]
        for k in range(min(samples.shape[1], SHEET_SAMPLES)):
            rows.append(samples[:, k])
            labels.append(name if k == 0 else "")
    return sample_sheet(torch.cat(rows), columns=n, row_labels=labels)


def _print_table(title: str, restored: Mapping[str, _Restored]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption="energy score ± standard error; RMSE and PSNR of the mean")
    for column in ("method", "energy", "RMSE", "PSNR", "max |Ax-y|", "NFE", "s"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for name, r in restored.items():
        s = r.score
        energy = f"{s.energy:.4f} ± {s.energy_error:.4f}" if s.samples > 1 else "needs --each 2"
        table.add_row(
            name, energy, f"{s.rmse_of_mean:.4f}", f"{s.psnr:.2f} dB", f"{r.off:.1e}",
            str(r.result.nfe), f"{r.result.seconds:.1f}",
        )  # fmt: skip
    Console().print(table)
