"""What commands print: facts, scores, JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from ..data import Dataset
    from ..denoiser import Denoiser
    from ..metrics import Features


MANY_CLASSES = 20  # whose counts are not listed one by one
SIGNALS = 64  # on a sheet; as many images


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


def features_note(extractor: Features | None, dataset: Dataset) -> None:
    """Say so where a classifier has seen, in training, the data that it judges by."""
    from ..metrics import Classifier

    if isinstance(extractor, Classifier) and extractor.record.fingerprint == dataset.fingerprint():
        print("the classifier was trained on these data: evaluate on others for the agreement that real data get")


def write_grid(path: Path, x: Tensor) -> None:
    """Write all samples (B, *) on one sheet: images as they are, anything else as a plot (the first 64 signals)."""
    from ..data.sheets import write_sheet
    from ..data.writing import contact_sheet, write_image

    path.parent.mkdir(parents=True, exist_ok=True)
    if x.ndim == 4 and x.shape[1] in (1, 3):
        write_image(path, contact_sheet(x))
    else:
        write_sheet(path, (x[:SIGNALS] if x.ndim == 3 else x).float())  # as a file of them gives them back


def data(dataset: Dataset, source: str, *, machine: bool) -> None:
    """Print what is in a data set, and the network and design that follow from it."""
    import torch

    from ..data.facts import facts as facts_of
    from ..design import EDM
    from ..networks import for_shape

    network = for_shape(dataset.shape)
    with torch.device("meta"):  # counted, not made
        parameters = sum(p.numel() for p in network.build(dataset.shape, dataset.label_dim).parameters())
    facts = facts_of(dataset) | {"network": network.to_dict(), "parameters": parameters}
    design = EDM.with_sigma_data(facts["sigma_data"])
    if machine:
        as_json(facts | {"design": design.to_dict()})
        return
    _print_facts(f"data: {source}", _in_words(facts))
    table("The first samples", *_first_rows(facts["first"]), words=("class",))
    print(f"\nThe training design that follows:\n{design}")


def _in_words(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of data as one line each."""
    words = {name: value for name, value in facts.items() if name not in ("first", "levels", "measured")}
    if facts["measured"] < facts["samples"]:
        words["samples"] = f"{facts['samples']} (range, mean and deviations measured on {facts['measured']} of them)"
    low, high = facts["range"]
    words["range"] = f"{low:g} to {high:g}"
    if facts["levels"]:
        words["range"] += f" (levels {facts['levels'][0]} to {facts['levels'][1]})"
    if facts["channels"]:
        pairs = zip(facts["channels"]["mean"], facts["channels"]["std"], strict=True)
        words["channels"] = ", ".join(f"{mean:.4g} ± {std:.4g}" for mean, std in pairs) + " (mean ± deviation)"
    words["samples a class"] = None if facts["samples a class"] is None else _class_counts(facts)
    if words["samples a class"] is not None and len(facts["samples a class"]) <= MANY_CLASSES:
        words.pop("class names")  # they stand beside the counts
    words["duplicates"] = _duplicates(facts["duplicates"])
    return words


def _class_counts(facts: dict[str, Any]) -> str:
    """The count of each class; of many classes the smallest and largest."""
    counts, names = facts["samples a class"], facts["class names"]
    if len(counts) > MANY_CLASSES:
        return f"{min(counts)} to {max(counts)} ({counts.count(0)} classes without any)"
    return ", ".join(f"{names[k] if names else k}: {count}" for k, count in enumerate(counts))


def _duplicates(found: dict[str, Any]) -> str:
    if not found["count"]:
        return "none"
    examples = "; ".join(" = ".join(str(name) for name in group) for group in found["examples"])
    odd = f", {found['conflicts']} of them with several labels" if found["conflicts"] else ""
    return f"{found['count']} superfluous in {found['groups']} groups{odd}: {examples}"


def _first_rows(first: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first samples, without the columns that nothing is in."""
    labelled, named = (any(one[key] is not None for one in first) for key in ("label", "class"))
    header = ["sample", *["label"] * labelled, *["class"] * named, "lowest", "highest", "mean"]
    rows = []
    for one in first:
        label = ", ".join(f"{v:g}" for v in one["label"]) if isinstance(one["label"], list) else str(one["label"])
        label = label if len(label) <= 40 else label[:37] + "..."
        numbers = [f"{v:g}" for v in (*one["range"], one["mean"])]
        rows.append([str(one["sample"]), *[label] * labelled, *[str(one["class"])] * named, *numbers])
    return header, rows


def data_sheet(path: Path, dataset: Dataset) -> None:
    """Write the first samples of a data set on one sheet: 64 images or signals, 256 points."""
    from ..data.sheets import DOTS, write_sheet
    from ..files import refuse_existing

    refuse_existing(path)
    x, _ = dataset.batch(range(min(DOTS if len(dataset.shape) == 1 else SIGNALS, len(dataset))))
    if not dataset.is_image:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sheet(path, x)
        return
    times = max(1, 64 // max(x.shape[2:]))  # small images are hard to see
    write_grid(path, x.repeat_interleave(times, 2).repeat_interleave(times, 3))


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
        "classes": None if denoiser.vector_labels else denoiser.label_dim or None,
        "label vectors of": denoiser.label_dim if denoiser.vector_labels else None,
        "conditioning": None if denoiser.conditioning is None else denoiser.conditioning.to_dict(),
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


def cost(nfe: int, facts: dict[str, Any]) -> str:
    """NFE 35; with guidance, how many evaluations of networks that is: two of them answer within the interval."""
    guidance = facts.get("guidance")
    return f"NFE {nfe}" + (f", {guidance['network_evaluations']:g} network evaluations" if guidance else "")
