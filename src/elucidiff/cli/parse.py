"""Strings of the command line as values: seeds, labels, settings, samplers. The only place where strings are parsed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from ..component import Value
    from ..conditioning import Conditioning
    from ..data import Dataset
    from ..denoiser import Denoiser
    from ..sampler import Sampler
    from ..training import Averaging, TrainConfig

    AnyValue = TypeVar("AnyValue", bound=Value)

MAX_LISTED = 10_000_000


def integers(text: str, what: str) -> list[int]:
    """A list of integers and ranges, "0-63,70". Raises ValueError saying what a good one looks like."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise ValueError(
                f"{what}: cannot read {part.strip()!r} in {text!r}; expected integers and ranges such as 0-63,70"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{what}: the range {part.strip()!r} runs backwards; did you mean {last}-{first}?")
        if last - first >= MAX_LISTED:
            raise ValueError(
                f"{what}: the range {part.strip()!r} has {last - first + 1:,} numbers; at most {MAX_LISTED:,}"
            )
        found += range(first, last + 1)
    return found


def seeds(text: str) -> list[int]:
    """Seeds of a sample each. Raises ValueError for repeated ones, whose files would overwrite each other."""
    found = integers(text, "seeds")
    if len(set(found)) != len(found):
        raise ValueError(f"seeds: {text!r} names a seed twice; each may come once")
    return found


def duration(text: str) -> float:
    """Seconds, of 13800, 90.5, 3h50m, 2d or 3:50:00."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text)  # D-HH:MM:SS, as SLURM has it
    if not text or not (found := units or clock):
        raise ValueError(f"duration: got {text!r}; expected seconds, or as 3h50m, 2d12h, 3:50:00, 1-03:50:00")
    d, h, m, s = (int(part or 0) for part in found.groups())
    return float(((d * 24 + h) * 60 + m) * 60 + s)


def labels(text: str | None, n: int, denoiser: Denoiser) -> Tensor | list[int] | None:
    """Labels of n samples: one class or vector for all, or several dealt in turn ("0-9", a .npy or .csv file)."""
    from .given import label_rows

    if text is None:
        return None
    if not denoiser.label_dim:
        raise ValueError("labels: this model has no classes; leave --labels out")
    if (rows := label_rows(text, denoiser)) is not None:
        return rows[[i % len(rows) for i in range(n)]]
    found = integers(text, "labels")
    if max(found) >= denoiser.label_dim:
        raise ValueError(f"labels: got {max(found)}; the model's classes are 0 to {denoiser.label_dim - 1}")
    return [found[i % len(found)] for i in range(n)]


def interval(text: str, what: str) -> tuple[float, float]:
    """Two numbers, "0.2,3" or "0.2,inf". Raises ValueError saying what a good interval looks like."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{what}: cannot read {text!r}; expected two numbers such as 0.2,3 or 0.2,inf") from None
    return low, high


def sampler(name: str, denoiser: Denoiser) -> Sampler:
    """A sampler by preset name (edm, vp, ve, iddpm; model: the one it was trained with) or from a JSON file.

    The file may hold a sampler or a whole design.
    """
    from ..design import PRESETS
    from ..models import design_of
    from ..solvers import Solver

    if name in PRESETS:
        return PRESETS[name].sampler
    if name == "model":
        design = design_of(denoiser)
        if design is None:
            raise ValueError("sampler: this model records no design of its own; use edm, vp, ve, iddpm or a JSON file")
        return design.sampler
    path = Path(name)
    if path.suffix != ".json":
        if name in Solver.kinds():
            raise ValueError(f"sampler: {name} is a solver: --set solver={name}")
        raise ValueError(unknown("sampler", name, [*PRESETS, "model"]) + " or a .json file")
    return sampler_file(path)


def sampler_file(path: Path) -> Sampler:
    """The sampler of a JSON file, which may hold a sampler or a whole design."""
    from ..design import Design
    from ..sampler import Sampler

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such sampler file")
    try:
        is_design = "sampler" in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        is_design = False  # Sampler.load says what is wrong
    return Design.load(path).sampler if is_design else Sampler.load(path)


def apply_settings(value: AnyValue, settings: Sequence[str]) -> AnyValue:
    """A value with settings "name=value" and "element.parameter=value" applied, whatever their order.

    "solver=rk2" chooses a kind with its default parameters, "solver.alpha=0.6" sets one of them;
    right-hand sides are JSON (numbers, true, null, lists, {"kind": ...}) or plain words; lists may be 1,2,2.
    """
    data = value.to_dict()
    for name, text in sorted((_split(s) for s in settings), key=lambda item: item[0].count(".")):
        *path, last = name.split(".")
        place: Any = data
        for i, step in enumerate(path):
            if not isinstance(place, dict) or step not in place:
                known = place if isinstance(place, dict) else []
                raise ValueError(f"--set {name}: {unknown('element', '.'.join(path[: i + 1]), known)}")
            place = place[step]
        if not isinstance(place, dict):
            raise ValueError(f"--set {name}: {'.'.join(path)} is {place!r} and has no parameters")
        chosen = _literal(text)
        if isinstance(place.get(last), list) and not isinstance(chosen, list):
            chosen = [_literal(part) for part in text.split(",")]
        is_element = isinstance(place.get(last), dict) or (last == "network" and isinstance(chosen, str))
        place[last] = {"kind": chosen} if is_element and isinstance(chosen, str) else chosen
    if "steps" in data and data.get("timesteps", {}).get("kind") == "fixed" and not _sets(settings, "steps"):
        data["steps"] = len([s for s in data["timesteps"].get("sigmas", []) if s])
    return type(value).from_dict(data)


def _sets(settings: Sequence[str], name: str) -> bool:
    return any(_split(s)[0] == name for s in settings)


def _split(setting: str) -> tuple[str, str]:
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"--set: got {setting!r}; expected name=value, e.g. solver=heun or solver.alpha=0.6")
    return name.strip(), text.strip()


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# Where the elements of a design that training uses sit in a configuration.
IN_DESIGN = {
    "noise": "design.objective.",
    "weighting": "design.objective.",
    "objective": "design.",
    "preconditioning": "design.",
}


def apply_training_settings(config: TrainConfig, settings: Sequence[str], dataset: Dataset) -> TrainConfig:
    """A training configuration with settings applied.

    "design=vp" takes a preset; "network.channels=16" changes the network chosen for the data; "ema=power" or
    "ema=half_life,power" names the averages of weights to keep. "augment=edm", "augment=full" or
    "augment=xflip,translation" chooses an augmentation, "augment.p=0.15" changes it. "condition=lowres" conditions on
    an image, "condition.factor=2" says how. "trackers=wandb,trackio" and "scores=fd,agreement" are lists of words.
    The elements of the design may be named alone: "weighting=learned", "noise.P_mean=-0.4", "preconditioning=vp".
    """
    from ..augment import named
    from ..design import PRESETS
    from ..networks import for_shape

    rest, averages = [], None
    for setting in settings:
        name, text = _split(setting)
        if name.partition(".")[0] in IN_DESIGN:
            rest.append(f"{IN_DESIGN[name.partition('.')[0]]}{name}={text}")
        elif name == "design":
            if text not in PRESETS:
                raise ValueError(unknown("design", text, PRESETS))
            config = config.replace(design=PRESETS[text])
        elif name == "augment" and isinstance(_literal(text), str):
            config = config.replace(augment=None if text == "none" else named(text, dataset.shape))
        elif name == "condition" and isinstance(_literal(text), str):
            config = config.replace(condition=None if text == "none" else _conditioning(text, dataset))
        elif name in ("trackers", "scores") and isinstance(_literal(text), str):
            rest.append(f"{name}={json.dumps([word.strip() for word in text.split(',') if word.strip()])}")
        elif name == "ema" and isinstance(_literal(text), str):
            averages = text
        else:
            rest.append(setting)
    if any(_split(s)[0].startswith("network.") for s in rest) and not (config.network or _sets(rest, "network")):
        config = config.replace(network=for_shape(dataset.shape))
    if any(_split(s)[0].startswith("augment.") for s in rest) and config.augment is None and not _sets(rest, "augment"):
        config = config.replace(augment=named("edm", dataset.shape))
    config = apply_settings(config, rest)
    return config if averages is None else config.replace(ema=_averages(averages, config))


def _conditioning(kind: str, dataset: Dataset) -> Conditioning:
    """The conditioning of a kind; the channels of a paired one are those of the data."""
    from ..conditioning import Conditioning, Paired

    chosen = Conditioning.of_kind(kind)
    pairs = dataset.condition if chosen is Paired else None
    return chosen() if pairs is None else Paired(pairs.shape[1])


def _averages(text: str, config: TrainConfig) -> tuple[Averaging, ...]:
    """The averages of weights that "half_life,power" names; the half-life is the one of the configuration."""
    from ..training import Averaging, HalfLife

    kinds = [Averaging.of_kind(word.strip()) for word in text.split(",")]
    return tuple(HalfLife(config.ema_halflife, config.ema_ramp) if kind is HalfLife else kind() for kind in kinds)
