"""Models on the hub: the card that describes one, and the upload."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import hub
from .citations import bibtex
from .denoiser import Denoiser, Preconditioned
from .design import Design, citation
from .files import write_atomically
from .models import design_of, save

CARD = "README.md"
Scores = Mapping[str, Any] | Sequence[Any]


def push(
    denoiser: Denoiser,
    repository: str,
    *,
    design: Design | None = None,
    info: dict[str, Any] | None = None,
    scores: Scores | None = None,
    license: str | None = None,  # the hub's own word for it
    private: bool = False,
    update: bool = False,
    message: str = "Upload model",
) -> str:
    """Save a denoiser and upload it with its card to owner/name on the hub; returns the address.

    `ed.load("owner/name")` gives it back bit for bit. `design`, `info`: as for `ed.save`; `scores`, `license`: as for
    `model_card`. Raises FileExistsError for a repository that exists, unless `update`, which adds a commit;
    MissingExtraError without huggingface_hub.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = save(denoiser, Path(place) / "model", design=design, info=info)
        card = model_card(denoiser, scores, name=repository, design=design, license=license)
        write_atomically(folder / CARD, card.encode())
        return hub.upload(folder, repository, private=private, update=update, message=message)


def model_card(
    denoiser: Denoiser,
    scores: Scores | None = None,
    *,
    name: str = "",
    design: Design | None = None,
    license: str | None = None,
) -> str:
    """The README.md of a model on the hub: YAML facts, use, the design as a table, scores, citation.

    Args:
        denoiser: a network of ours or an imported one; an exact denoiser has no card, but makes none fail either.
        scores: what was measured: results of `score_samples`, dicts of these, {name: value}, or what
            `elucidiff evaluate --out` wrote: one such, or several.
        name: owner/name, for the example.
        design: what it was trained with; its own when left out.
        license: the hub's word for it, e.g. "apache-2.0"; that of info["license"] when left out, else "unknown".
    """
    info = getattr(denoiser, "info", {})
    design = design or design_of(denoiser)
    parts = [
        _front(denoiser, license or info.get("license") or "unknown"),
        f"# {name.split('/')[-1] or 'A diffusion model'}",
        _facts(denoiser, info),
        _use(denoiser, name or "owner/name"),
        _design(denoiser, design),
        _scores(scores),
        _training(info),
        f"## Citation\n\n```bibtex\n{_citation(denoiser, design)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(denoiser: Denoiser, license: str) -> str:
    known = re.match(r"CC (BY[A-Z-]*) (\d\.\d)", license)
    word = f"cc-{known[1].lower()}-{known[2]}" if known else license
    lines = ["library_name: elucidiff"]
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", word):
        lines.append(f"license: {word}")
    else:
        lines += ["license: other", f"license_name: {json.dumps(license)}"]
    shape = denoiser.shape or ()
    if len(shape) == 3 and shape[0] in (1, 3) and not denoiser.label_dim and not denoiser.conditioning:
        lines.append("pipeline_tag: unconditional-image-generation")
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in ("diffusion", "edm", "elucidiff")), "---"])


def _facts(denoiser: Denoiser, info: Mapping[str, Any]) -> str:
    data = info.get("data") or {}
    lines = [f"- samples of shape {tuple(denoiser.shape or ())}"]
    if denoiser.vector_labels:
        lines.append(f"- labels are vectors of {denoiser.label_dim} numbers")
    elif denoiser.label_dim:
        named = ", ".join(str(c) for c in data.get("classes") or [])
        lines.append(f"- {denoiser.label_dim} classes" + (f": {named}" if named else ""))
    if denoiser.conditioning is not None:
        accepted = denoiser.conditioning.accepted(denoiser.shape or ())
        lines.append(f"- conditioned by `{denoiser.conditioning}`: `condition` is {accepted}")
    lines.append(f"- noise levels from {denoiser.sigma_min:.4g} to {denoiser.sigma_max:.4g}")
    if isinstance(denoiser, Preconditioned):
        kind = denoiser.network_config.kind if denoiser.network_config is not None else type(denoiser.network).__name__
        lines.append(f"- network `{kind}`, {sum(p.numel() for p in denoiser.parameters()):,} parameters")
    if data.get("name"):
        lines.append(f"- trained on {data['name']}" + (f" ({data['images']:,} images)" if data.get("images") else ""))
    if imported := info.get("imported"):
        lines.append(f"- imported from {imported.get('from')} ({imported.get('class')})")
    return "\n".join(lines)


def _use(denoiser: Denoiser, name: str) -> str:
    extra = "hub,diffusers" if _is_from_diffusers(denoiser) else "hub"
    asked = ", labels=labels" if denoiser.vector_labels else ""
    asked += "" if denoiser.conditioning is None else ", condition=condition"
    code = (
        f'import elucidiff as ed\n\ndenoiser = ed.load("{name}")\n'
        f"result = ed.sample(denoiser, ed.EDM, seeds=range(16){asked})"
    )
    return f"## Use\n\n```sh\npip install 'elucidiff[{extra}]'\n```\n\n```python\nimport elucidiff as ed\n\n{code}\n```"


def _is_from_diffusers(denoiser: Denoiser) -> bool:
    return isinstance(denoiser, Preconditioned) and getattr(denoiser.network_config, "kind", "") == "diffusers"


def _design(denoiser: Denoiser, design: Design | None) -> str:
    if design is not None:
        return f"## Design\n\n```text\n{design}\n```"
    if not isinstance(denoiser, Preconditioned):
        return ""
    p = denoiser.preconditioning
    rows = [("c_skip", p.formula_skip), ("c_out", p.formula_out), ("c_in", p.formula_in), ("c_noise", p.formula_noise)]
    table = "\n".join(f"| {name} | {formula} |" for name, formula in rows)
    return f"## Preconditioning\n\n`{p}`\n\n| coefficient | formula |\n|---|---|\n{table}"


def _scores(scores: Scores | None) -> str:
    if not scores:
        return ""
    if isinstance(scores, Mapping):
        if not isinstance(scores.get("scores"), Sequence):
            rows = "\n".join(f"| {name} | {value:.5g} |" for name, value in scores.items())
            return f"## Scores\n\n| score | value |\n|---|---|\n{rows}"
        scores = [scores]
    found = [dict(s) if isinstance(s, Mapping) else s.to_dict() for s in scores]
    if all("scores" in one for one in found):
        return "## Scores\n\n" + "\n\n".join(_evaluation(one) for one in found)
    rows = "\n".join(_score_row(s) for s in found)
    return f"## Scores\n\n| score | value | real data | samples | features |\n|---|---|---|---|---|\n{rows}"


def _evaluation(found: Mapping[str, Any]) -> str:
    header, rows, note = score_table(found)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def score_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and what they depend on, of the JSON data of an evaluation (`elucidiff evaluate --out`)."""
    several = found.get("repeats", 1) > 1
    rows = []
    for s in found["scores"]:
        error = s.get("std") if several else s.get("error")
        value = f"{s['value']:.5g}" + ("" if error is None else f" ± {error:.2g}")
        least = [f"{s['min']:.5g}"] if several else []
        rows.append([s["name"], value, *least, "" if s.get("real") is None else f"{s['real']:.5g}", s["features"]])
    header = ["score", "value", *(["least"] if several else []), "real data", "features"]
    return header, rows, " ".join([_measured_on(found), *(f"{w[:1].upper()}{w[1:]}." for w in found["warnings"])])


def evaluations_in(folder: str | Path) -> list[dict[str, Any]]:
    """What `evaluate --out` wrote into a folder, as evaluation*.json; other files of that name are left out."""
    found = []
    for file in sorted(Path(folder).glob("evaluation*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(content, dict) and isinstance(content.get("scores"), list) and "features_sha256" in content:
            found.append(content)
    return found


def _measured_on(found: Mapping[str, Any]) -> str:
    """What the scores of an evaluation depend on, in sentences."""
    of, sampler = found["reference"], found.get("sampler")
    times = f"{found['repeats']} x " if found.get("repeats", 1) > 1 else ""
    place = Path(of["file"]).name if "file" in of else f"{of['name']}, held out,"
    whose = str(of.get("sha256") or of.get("fingerprint"))[:8]
    lines = [f"{times}{found['n']:,} samples" + (f" (seeds {found['seeds']})" if "seeds" in found else "")]
    lines[0] += f" against {of['n'] or 'an unknown number':{',' if of['n'] else ''}} of {place} SHA-256 {whose};"
    if sampler:
        lines.append(f"sampler {sampler['solver']['kind']}, {sampler['steps']} {sampler['timesteps']['kind']} steps, "
                     f"NFE {found['nfe']};")  # fmt: skip
    if found.get("ema"):
        lines.append(f"{average_text(found['ema'])};")
    n_real = "none" if found["n_real"] is None else f"{found['n_real']:,}"
    return " ".join([*lines, f"features' SHA-256 {found['features_sha256'][:8]}; real data: n = {n_real}."])


def average_text(ema: Mapping[str, Any] | None) -> str:
    """An average of weights, as model.json records it, in words."""
    if not ema:
        return "EMA not recorded"
    if "sigma_rel" in ema:
        return f"EMA sigma_rel {ema['sigma_rel']:g}" + (" (reconstructed)" if "reconstructed" in ema else "")
    return f"EMA half-life {ema['halflife']:,.0f} images" if "halflife" in ema else f"EMA {ema.get('kind', ema)}"


def _score_row(s: Mapping[str, Any]) -> str:
    error = "" if s.get("error") is None else f" ± {s['error']:.2g}"
    real = "" if s.get("real") is None else f"{s['real']:.5g}"
    return f"| {s['name']} | {s['value']:.5g}{error} | {real} | {s.get('n', '')} | {s.get('features', '')} |"


def _training(info: Mapping[str, Any]) -> str:
    training = info.get("training") or {}
    if "images_seen" not in training:
        return ""
    return f"## Training\n\n{training['images_seen']:,} images seen, {training.get('seconds', 0):,.0f} s."


def _citation(denoiser: Denoiser, design: Design | None) -> str:
    if design is not None:
        return citation(design)
    own = denoiser.preconditioning.references if isinstance(denoiser, Preconditioned) else ()
    return bibtex(["edm", *own])
