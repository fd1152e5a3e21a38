"""`elucidiff evaluate --sweep`: every snapshot of a run scored, against the images seen and the average of weights."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import show
from .compare_show import LABELS, number, with_spread
from .evaluate_asked import Asked, Yardstick, drawn_from
from .evaluate_show import print_notes
from .options import load_model

if TYPE_CHECKING:
    from ..analysis.evaluation import Evaluation
    from ..portions import Portion


def sweep_snapshots(
    run: Path,
    asked: Asked,
    rule: Yardstick,
    portion: Portion,
    places: tuple[Path | None, Path | None, Path | None],
    *,
    as_json: bool,
) -> None:
    """Score them all with the same seeds; print, draw and write what was found. places: --work, --out, --pictures."""
    from ..files import folder_written_atomically
    from .evaluate import tell_missing, write_numbers

    work, out, pictures = places
    found, gaps = _measured(run, asked, rule, portion, work)
    if gaps:
        tell_missing(work, *gaps, as_json=as_json)
        return
    content = {"run": str(run), "snapshots": [e.to_dict() | {"snapshot": name} for name, e in found.items()]}
    if pictures is not None:
        with suppress(*([FileExistsError] if portion.count > 1 else [])), folder_written_atomically(pictures) as new:
            (new / "sweep.png").write_bytes(sweep_picture(found))
    if out is not None:
        write_numbers(out, content)
    if as_json:
        show.as_json(content)
        return
    print_sweep(run, found)
    for name, place in (("picture", pictures and pictures / "sweep.png"), ("numbers", out)):
        if place is not None:
            print(f"{name}: {place}")


def snapshots(run: Path) -> list[Path]:
    """The snapshots of a run, by name: NNNNNN, and NNNNNN-WIDTH where several averages were kept."""
    from ..models import DESCRIPTION

    found = sorted(p.parent for p in (run / "snapshots").glob(f"*/{DESCRIPTION}") if p.parent.name[0] != ".")
    if not found:
        raise FileNotFoundError(f"{run}: not a run directory with snapshots; --sweep scores those of a run")
    return found


def _measured(
    run: Path, asked: Asked, rule: Yardstick, portion: Portion, work: Path | None
) -> tuple[dict[str, Evaluation], tuple[int, int] | None]:
    """The evaluations of all snapshots; or how many chunks are missing, and of how many."""
    from .evaluate import run as measure

    found: dict[str, Evaluation] = {}
    missing = chunks = 0
    for folder in snapshots(run):
        denoiser = load_model(str(folder), asked.own_device)
        source, facts = drawn_from(str(folder), denoiser, asked, rule)
        place = None if work is None else work / folder.name
        evaluation, done = measure(source, facts, asked, rule, portion, place, what=folder.name)
        missing, chunks = missing + len(done.missing()), chunks + done.chunks
        if evaluation is not None:
            found[folder.name] = evaluation
    return found, (missing, chunks) if missing else None


def print_sweep(run: Path, found: dict[str, Evaluation]) -> None:
    """A row for each snapshot, the best of the first score marked, real data below."""
    from ..publish import average_text

    evaluations = list(found.values())
    metrics = [score.each[0].metric for score in evaluations[-1].scores]
    best = _best(found, metrics[0]) if metrics else None
    rows = []
    for name, evaluation in found.items():
        seen = evaluation.facts.get("images_seen")
        cells = [with_spread(score.spread) for score in evaluation.scores]
        first = [name, f"{seen:,}" if seen else "–", average_text(evaluation.facts.get("ema"))]
        rows.append([*first, *cells, "best" if name == best else ""])
    rows.append(["real data", "", "", *(number(score.each[0].real) for score in evaluations[-1].scores), ""])
    header = ["snapshot", "images seen", "average", *(LABELS[m] for m in metrics), ""]
    show.table(f"Snapshots of {run}", header, rows, words=["average", ""])
    facts = evaluations[-1].facts
    repeats = f"{facts['repeats']} x " if facts["repeats"] > 1 else ""
    print_notes(evaluations[-1], f"{repeats}{facts['n']:,} of each snapshot, seeds {facts['seeds']}")


def _best(found: dict[str, Evaluation], metric: str) -> str:
    from ..analysis.compare import HIGHER_IS_BETTER

    sign = -1 if metric in HIGHER_IS_BETTER else 1
    means = {name: score.spread.mean or 0.0 for name, e in found.items() for score in e.scores
             if score.each[0].metric == metric}  # fmt: skip
    return min(means, key=lambda name: sign * means[name])


def sweep_picture(found: dict[str, Evaluation]) -> bytes:
    """The scores over the images seen, a curve for each average of weights, a panel for each metric."""
    from ..publish import average_text
    from ..report.quality import Curve, Line, quality_plot

    panels, lines = {}, {}
    for i, score in enumerate(next(iter(found.values())).scores):
        points: dict[str, list[tuple[float, Any]]] = {}
        for evaluation in found.values():
            point = (evaluation.facts.get("images_seen") or 0, evaluation.scores[i].spread)
            points.setdefault(average_text(evaluation.facts.get("ema")), []).append(point)
        label, real = LABELS[score.each[0].metric], score.each[0].real
        panels[label] = [
            Curve(name, [x for x, _ in curve], [s.mean for _, s in curve], [s.std for _, s in curve])
            for name, curve in points.items()
        ]
        lines[label] = [] if real is None else [Line("real against real", real)]
    return quality_plot(panels, lines, xlabel="images seen", logx=False)
