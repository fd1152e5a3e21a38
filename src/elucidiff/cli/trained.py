"""What `train` says at the end: the best snapshot, where to look, what to do next."""

from __future__ import annotations

from pathlib import Path

from . import show


def trained(run: Path, images: int, *, machine: bool) -> None:
    """Draw RUN/training.png, where Matplotlib is installed, and print what there is to see."""
    from ..training.heldout import best

    picture, chosen = _picture(run), best(run)
    if machine:
        found = {} if chosen is None else {"best": {"snapshot": chosen["snapshot"], "heldout": chosen["heldout"]}}
        show.as_json({"run": str(run), "images": images} | found)
        return
    print(f"trained on {images:,} images: {run}")
    if chosen is not None:
        print(f"best snapshot: {run / 'snapshots' / chosen['snapshot']}, held-out loss {chosen['heldout']:.4g}")
    print(
        f"look: {'' if picture is None else f'{picture}, '}{run / 'samples' / 'training'}, tensorboard --logdir {run}"
    )
    print(f"next: elucidiff sample {run} --out samples")


def _picture(run: Path) -> Path | None:
    from ..errors import MissingExtraError
    from ..report.training import write_training_picture

    try:
        return write_training_picture(run)
    except MissingExtraError:
        return None
