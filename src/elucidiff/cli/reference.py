"""The command `reference`: statistics of a data set's features in a file, to score against without the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import show
from .options import DataArg, DeviceOption, FeaturesOption, JsonOption, checked_device, chosen_features, read_data

ROWS = 1024  # samples read at a time, so that data that outgrow memory have statistics too


def reference(
    data: DataArg,
    out: Annotated[Path, typer.Option("--out", help="New .npz file.", show_default=False)],
    features: FeaturesOption = None,
    heldout: Annotated[
        float | None,
        typer.Option("--heldout", help="Only the part that `evaluate --heldout` holds out. Default: all.", min=0),
    ] = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Write mean and covariance of a data set's features to a file; `evaluate --reference` scores against it.

    The file says what it is of: the number of samples, the extractor with its SHA-256, the data's fingerprint. Other
    tools read its mu and sigma.

    Example: elucidiff reference cifar10.zip --features inception:FILE --out cifar10-inception.npz
    """
    from ..files import refuse_existing
    from ..metrics import Statistics, extractor_for, extractor_hash, save_reference
    from ..progress import bar

    if out.suffix != ".npz":
        raise ValueError(f"--out: got {out}; reference statistics are written as .npz files")
    refuse_existing(out)
    where, extractor, dataset = checked_device(device), chosen_features(features), read_data(data)
    extractor = extractor or extractor_for(dataset.shape, dataset.source)
    extractor.check(dataset.shape)
    facts: dict[str, Any] = {"name": dataset.name, "fingerprint": dataset.fingerprint(), "heldout": heldout}
    if heldout is not None:
        _, dataset = dataset.split(heldout)
    found = Statistics.empty(extractor.dim(dataset.shape))
    with bar("features") as report:
        for start in range(0, len(dataset), ROWS):
            report(start, len(dataset))
            x, _ = dataset.batch(range(start, min(start + ROWS, len(dataset))))
            found = found.update(extractor.features(x.to(where)))
    save_reference(out, found, extractor, facts)
    sha256 = extractor_hash(extractor)
    if as_json:
        numbers = {"n": found.n, "d": len(found.mean), "features": extractor.to_dict(), "features_sha256": sha256}
        show.as_json({"out": str(out)} | numbers | {"data": facts})
    else:
        d = len(found.mean)
        print(f"{out}: {found.n:,} of {dataset.name}, features {extractor} (SHA-256 {sha256[:8]}), d = {d:,}")
        if found.n <= d:
            print(f"caution: no more samples than d = {d:,}: scores against them are mostly bias")
