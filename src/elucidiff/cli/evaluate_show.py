"""What `evaluate` prints: a table of scores, and beneath it all that they depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import show
from .evaluate_asked import described

if TYPE_CHECKING:
    from ..analysis.evaluation import Evaluation, Repeated
    from ..data import Dataset


def print_evaluation(found: Evaluation, data: Dataset | None) -> None:
    """Scores beside those of real data; then samples, reference, features, real data; then what to beware of."""
    facts = found.facts
    repeats = f"{facts['repeats']} x " if facts["repeats"] > 1 else ""
    title = f"{repeats}{facts['n']:,} samples against {_against(facts['reference'])}"
    header = ["score", "samples", *(["least"] if repeats else []), "real data", "features"]
    show.table(title, header, [_row(score, bool(repeats)) for score in found.scores], words=["features"])
    print_notes(found)
    if data is not None:
        show.features_note(found.extractor, data)


def print_notes(found: Evaluation, samples: str | None = None) -> None:
    """What scores depend on, and what to beware of. samples: said of them in place of the model."""
    for name, text in (_lines(found.facts) | ({} if samples is None else {"samples": samples})).items():
        print(f"  {name:<10} {text}")
    for warning in found.warnings:
        print(f"caution: {warning}")


def _row(score: Repeated, several: bool) -> list[str]:
    first, spread = score.each[0], score.spread
    error = spread.std if several else first.error
    value = f"{spread.mean:.4g}" + ("" if error is None else f" ± {error:.2g}")
    least = [f"{score.least:.4g}"] if several else []
    return [first.name, value, *least, "–" if first.real is None else f"{first.real:.4g}", first.features]


def _against(reference: dict[str, Any]) -> str:
    n = "an unknown number" if reference.get("n") is None else f"{reference['n']:,}"
    return f"{n} in {reference['file']}" if "file" in reference else f"{n} held-out of {reference['name']}"


def _lines(facts: dict[str, Any] | Any) -> dict[str, str]:
    """What the scores depend on, a line each."""
    lines = {"samples": _samples(facts)}
    if "sampler" in facts:
        guidance = f", guidance {facts['guidance']['weight']:g}" if "guidance" in facts else ""
        lines["sampler"] = f"{show.cost(facts['nfe'], facts)}: {described(facts['sampler'])}{guidance}"
    reference = facts["reference"]
    whose = f"SHA-256 {str(reference.get('sha256') or reference.get('fingerprint'))[:8]}"
    lines["reference"] = f"{_against(reference)}, {whose}"
    real = "none" if facts["n_real"] is None else f"n = {facts['n_real']:,}, against the same reference"
    lines["real data"] = real
    lines["features"] = f"{facts['features']['kind']}, SHA-256 {facts['features_sha256'][:8]}, d = {facts['d']:,}"
    if facts["repeats"] > 1:
        lines["repeats"] = f"mean ± standard deviation of {facts['repeats']}; the least of them, as papers report it"
    return lines


def _samples(facts: Any) -> str:
    """The model with its weights, its average and seeds; or the file."""
    from ..publish import average_text

    own = f", SHA-256 {facts['fingerprint'][:8]}"
    if "samples" in facts:
        return f"{facts['samples']}{own}" + (f" (of {facts['model']})" if "model" in facts else "")
    seen = f", {facts['images_seen']:,} images seen" if facts.get("images_seen") else ""
    asked = "".join(f", {name} {facts[name]}" for name in ("labels", "condition") if name in facts)
    return f"{facts['model']}{own}{seen}, {average_text(facts.get('ema'))}, seeds {facts['seeds']}{asked}"
