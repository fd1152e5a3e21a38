"""`elucidiff classifier`: train the features that samples of the user's own labelled images are scored on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from . import show
from .options import DataArg, JsonOption, read_data


def classifier(
    data: DataArg,
    out: Annotated[
        Path, typer.Option("--out", help="New file: OUT.json, and the weights in OUT.safetensors.", show_default=False)
    ],
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, help="How many to train on. Default: six times the data, 200,000 at least."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="DATA", help="Measure the accuracy on these; default: on a held-out tenth."),
    ] = None,
    heldout: Annotated[
        float, typer.Option("--heldout", help="The part of the data that is held out, without --test.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a small classifier on labelled images; `evaluate --features` then measures distances and classes with it.

    Half a millisecond an image of 28x28 on a core. Evaluate on other data than it was trained on.

    Example: elucidiff classifier mnist-train.zip --test mnist-test.zip --out mnist-classifier
    Example: elucidiff evaluate runs/mnist mnist-test.zip --features mnist-classifier.json
    """
    from ..metrics.classifier import classifier_files, train_classifier

    description, weights = classifier_files(out)
    dataset = read_data(data)
    tested = None if test is None else read_data(test)
    started = time.perf_counter()
    found = train_classifier(dataset, images=images, test=tested, heldout=heldout, seed=seed, progress=True)
    found.save(out)
    if as_json:
        show.as_json({"out": str(description)} | found.to_dict())
        return
    record = found.record
    whence = "held-out images" if test is None else f"images of {record.tested_on}"
    print(
        f"accuracy {record.accuracy:.2%} on {record.tested:,} {whence}, after {record.images:,} images "
        f"({time.perf_counter() - started:.0f} s)\n{description}, {weights}: {found}\n"
        f"next: elucidiff evaluate MODEL DATA --features {description}"
    )
