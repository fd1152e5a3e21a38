"""What commands print: facts, scores, JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from ..analysis import Score
    from ..data import Dataset
    from ..denoiser import Denoiser


def as_json(value: Any) -> None:
    """Print a value for machines."""
    print(json.dumps(value, indent=2))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str] = ()) -> None:
    """Print a table of texts: the first column and those in `words` aligned left, the others right."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        made.add_column(name, justify="left" if i == 0 or name in words else "right")
    for row in rows:
        made.add_row(*row)
    _console().print(made)


def _console() -> Console:
    """As wide as the terminal; wide where the output goes into a file, which has no width."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def scores(found: list[Score], reference: Dataset) -> None:
    """Print scores as a table, each beside the value of real data."""
    from rich.console import Console
    from rich.table import Table

    first = found[0] if found else None
    table = Table(
        title=f"{first.n} samples against {first.n_reference} held-out of {reference.name}" if first else None
    )
    for column in ("score", "samples", "real data", "features"):
        table.add_column(column, justify="left" if column in ("score", "features") else "right")
    for s in found:
        error = "" if s.error is None else f" ± {s.error:.2g}"
        table.add_row(s.name, f"{s.value:.4g}{error}", "" if s.real is None else f"{s.real:.4g}", s.features)
    Console().print(table)


def write_grid(path: Path, x: Tensor) -> None:
    """Write all images on one sheet. Raises ValueError for samples that are not images."""
    from ..data.writing import contact_sheet, write_image

    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"--grid: samples of shape {tuple(x.shape[1:])} are not images")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, contact_sheet(x))


def data(dataset: Dataset, source: str, *, machine: bool) -> None:
    """Print what is in a data set, and the network and design that follow from it."""
    import numpy as np
    import torch

    from ..design import EDM
    from ..networks import for_shape

    sigma_data = dataset.sigma_data()
    network = for_shape(dataset.shape)
    with torch.device("meta"):  # counted, not made
        parameters = sum(p.numel() for p in network.build(dataset.shape, dataset.label_dim).parameters())
    facts: dict[str, Any] = {
        "samples": len(dataset),
        "shape": list(dataset.shape),
        "kind": "images of 256 levels" if dataset.is_image else "float arrays",
        "mean": round(dataset.mean(), 6),
        "sigma_data": round(sigma_data, 6),
        "classes": dataset.label_dim or None,
        "class names": list(dataset.classes) if dataset.classes else None,
        "samples a class": np.bincount(dataset.labels).tolist()
        if dataset.labels is not None and dataset.labels.ndim == 1
        else None,
        "fingerprint": dataset.fingerprint(),
        "network": network.to_dict(),
        "parameters": parameters,
    }
    if machine:
        as_json(facts | {"design": EDM.with_sigma_data(sigma_data).to_dict()})
        return
    _print_facts(f"data: {source}", facts)
    print(f"\nThe training design that follows:\n{EDM.with_sigma_data(sigma_data)}")


def model(denoiser: Denoiser, source: str, *, machine: bool) -> None:
    """Print what a model is, how large, and how it was trained."""
    from ..models import design_of

    facts = model_facts(denoiser)
    if machine:
        as_json(facts)
        return
    facts.pop("design", None)
    _print_facts(f"model: {source}", facts)
    design = design_of(denoiser)
    if design:
        print(f"\nTrained with:\n{design}")


def model_facts(denoiser: Denoiser) -> dict[str, Any]:
    """What a model is, how large, and how it was trained, as JSON data."""
    from ..denoiser import Preconditioned
    from ..models import design_of

    facts: dict[str, Any] = {
        "denoiser": type(denoiser).__name__,
        "shape": list(denoiser.shape or ()),
        "classes": denoiser.label_dim or None,
        "noise levels": [denoiser.sigma_min, "inf" if denoiser.sigma_max == float("inf") else denoiser.sigma_max],
    }
    if isinstance(denoiser, Preconditioned) and denoiser.network_config is not None:
        facts["network"] = denoiser.network_config.to_dict()
        facts["preconditioning"] = denoiser.preconditioning.to_dict()
        facts["parameters"] = sum(p.numel() for p in denoiser.parameters())
        facts |= {k: v for k, v in denoiser.info.items() if k != "design"}
    design = design_of(denoiser)
    return facts | ({"design": design.to_dict()} if design else {})


def foreign(path: str, *, machine: bool) -> None:
    """Print what a file of weights is, what it would execute if it were unpickled, and the model in it."""
    from dataclasses import asdict

    from ..errors import FormatError
    from ..foreign import inspect
    from ..models import load

    found = inspect(path)
    try:
        denoiser, reason = load(path), None
    except FormatError as error:
        denoiser, reason = None, str(error)
    if machine:
        as_json(asdict(found) | {"model": None if denoiser is None else model_facts(denoiser), "reason": reason})
        return
    print(found)
    if denoiser is None:
        print(f"no model that can be loaded: {reason}")
    else:
        model(denoiser, path, machine=False)


def _print_facts(title: str, facts: dict[str, Any]) -> None:
    print(title)
    for name, value in facts.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items() if not isinstance(v, dict))
        print(f"  {name:<16} {value}")
