"""What `evaluate` was asked: its options as one value, the samples they name, and what these are scored against."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .given import read_condition
from .options import MICRO_BATCH, GuidanceAsked, chosen_features, chosen_sampler, is_model, load_model, read_data

if TYPE_CHECKING:
    from torch import Tensor

    from ..analysis.evaluation_judges import Judge
    from ..analysis.evaluation_sources import FromData, FromModel, Source
    from ..data import Dataset
    from ..denoiser import Denoiser
    from ..metrics import Features, Reference
    from ..sampler import Sampler

METRICS = "fd,kd,agreement"
OF_FILE = "fd,agreement"
NUM = 500


@dataclass(frozen=True)
class Asked:
    """The options of `evaluate` that say what is measured, as they were typed."""

    data: str | None
    reference: Path | None
    key: str | None
    metrics: str | None
    features: str | None
    num: int | None
    repeat: int
    seeds: str | None
    first_seed: int
    heldout: float
    sampler: str
    steps: int | None
    nfe: int | None
    settings: list[str] | None
    labels: str | None
    condition: Path | None
    guidance: GuidanceAsked
    batch_size: int
    device: str

    @property
    def own_device(self) -> str:
        """Of this process, among those that torchrun starts."""
        from ..portions import own_device

        return own_device(self.device)

    def numbers(self) -> list[int]:
        """The seeds of all repeats. Raises ValueError for options that contradict each other."""
        from . import parse

        if self.seeds is None:
            return list(range(self.first_seed, self.first_seed + (self.num or NUM) * self.repeat))
        if self.num is not None or self.first_seed:
            raise ValueError("--seeds: says already which and how many; leave --num and --seed out")
        found = parse.seeds(self.seeds)
        if len(found) % self.repeat:
            raise ValueError(f"--seeds: {len(found)} seeds are not {self.repeat} repeats of equal size")
        if len(found) < 5 * self.repeat:
            raise ValueError(f"--seeds: got {len(found)} for {self.repeat} repeats; expected at least 5 for each")
        return found


@dataclass(frozen=True)
class Yardstick:
    """The data and the file that samples are scored against, what is measured, and on which features."""

    data: Dataset | None
    file: Reference | None
    sha256: str
    metrics: tuple[str, ...]
    extractor: Features | None
    judges: dict[tuple[int, str], Judge] = field(default_factory=dict)  # of a sweep: one for all snapshots

    def of(self, shape: tuple[int, ...]) -> Features:
        """The extractor, which reads samples of a shape: the one asked for, the file's, or the one of the data."""
        from ..metrics import extractor_for

        chosen = self.extractor or extractor_for(shape, "" if self.data is None else self.data.source)
        chosen.check(shape)
        if self.file is not None:
            self.file.check(chosen)
        return chosen

    def judge(self, asked: Asked, num: int, extractor: Features) -> Judge:
        """What scores `num` samples a time; made once."""
        known = (num, str(extractor))
        if known not in self.judges:
            self.judges[known] = self._judge(asked, num, extractor)
        return self.judges[known]

    def _judge(self, asked: Asked, num: int, extractor: Features) -> Judge:
        from ..analysis.evaluation_judges import judge_by_data, judge_by_file

        device = asked.own_device
        if self.file is not None:
            place = str(asked.reference)
            played = None if self.data is None else _outside(self.data, self.file)
            return judge_by_file(self.file, place, self.sha256, played, num, self.metrics, extractor, device=device)
        if self.data is None:
            raise ValueError("DATA is missing: what to score against; or --reference FILE")
        return judge_by_data(self.data, num, self.metrics, extractor, heldout=asked.heldout, device=device)

    def parts(self, heldout: float) -> tuple[Dataset, Dataset]:
        """The data that a model may have seen, and the reference: all of them, where a file has that place."""
        if self.data is None:
            raise ValueError("DATA is missing: what to compare with")
        return (self.data, self.data) if self.file is not None else self.data.split(heldout)


def yardstick(asked: Asked) -> Yardstick:
    """Read what the options name. Raises ValueError where there is neither data nor a file, and for unknown metrics."""
    from ..analysis.evaluation_judges import metrics_of
    from ..files import sha256
    from ..metrics import load_reference

    if asked.data is None and asked.reference is None:
        raise ValueError("DATA is missing: what to score against; or --reference FILE, statistics of it")
    if asked.key is not None and asked.reference is None:
        raise ValueError("--key: names the statistics in --reference FILE; give that, too")
    named = asked.metrics or (METRICS if asked.reference is None else OF_FILE)
    metrics = metrics_of([m.strip() for m in named.split(",")], against_file=asked.reference is not None)
    extractor = chosen_features(asked.features)
    data = None if asked.data is None else read_data(asked.data)
    if data is not None and extractor is not None:
        extractor.check(data.shape)
    if asked.reference is None:
        return Yardstick(data, None, "", metrics, extractor)
    file = load_reference(asked.reference, asked.key)
    return Yardstick(data, file, sha256(asked.reference), metrics, extractor or _named(file))


def _named(file: Reference) -> Features | None:
    """The extractor that a file names, where it is one without weights of its own."""
    from ..metrics import Features, extractor_hash

    kind = Features.kinds().get(file.extractor or "")
    try:
        made = None if kind is None else kind()
    except (TypeError, ValueError, OSError, ImportError):  # it needs weights
        return None
    return made if made is not None and extractor_hash(made) == file.sha256 else None


def _outside(data: Dataset, file: Reference) -> Dataset:
    """The part of data that is not in the reference, where the file says which part is."""
    made_of = file.data or {}
    if made_of.get("heldout") and made_of.get("fingerprint") == data.fingerprint():
        return data.split(float(made_of["heldout"]))[0]
    return data


def source_of(name: str, asked: Asked, rule: Yardstick) -> tuple[Source, dict[str, Any]]:
    """The samples that MODEL names, and what is to be said of them beside their scores."""
    from ..data.sources import is_named_data

    if not is_model(name) and (Path(name).is_dir() or is_named_data(name)):
        return _given(name, asked)
    return drawn_from(name, load_model(name, asked.own_device), asked, rule)


def drawn_from(name: str, denoiser: Denoiser, asked: Asked, rule: Yardstick) -> tuple[FromModel, dict[str, Any]]:
    """A model's samples, and the model, sampler, guidance and seeds that they depend on."""
    from ..analysis.evaluation_sources import FromModel, shape_shown
    from ..models import design_of
    from ..seeds import as_ranges

    seeds = asked.numbers()
    chosen = chosen_sampler(denoiser, asked.sampler, asked.settings, asked.steps, nfe=asked.nfe)
    conditions, told = _conditions(denoiser, asked, rule, seeds)
    guided = asked.guidance.of(denoiser, asked.own_device)
    shape = rule.data.shape if rule.data is not None else shape_shown(denoiser)
    image = rule.data.is_image if rule.data is not None else len(shape) == 3 and shape[0] in (1, 3)
    source = FromModel(
        guided or denoiser,
        chosen,
        tuple(seeds),
        shape,
        image,
        conditions.get("labels"),
        conditions.get("condition"),
        batch_size=asked.batch_size,
        micro_batch=MICRO_BATCH,
    )
    facts: dict[str, Any] = {"model": name, "fingerprint": source.fingerprint, **training_of(denoiser)}
    facts |= {"design": design.name} if (design := design_of(denoiser)) else {}
    facts |= {"seeds": as_ranges(seeds), "sampler": chosen.to_dict()}
    return source, facts | told


def _conditions(
    denoiser: Denoiser, asked: Asked, rule: Yardstick, seeds: list[int]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Labels and condition of the samples, and in a word where each is from.

    Where a model needs some and none are named, its samples follow those of the data that are no reference.
    """
    import torch

    from ..request import asked_by_data
    from . import parse

    named = asked.labels is not None or asked.condition is not None
    if not named and rule.data is not None and denoiser.shape in (None, rule.data.shape):
        followed = asked_by_data(denoiser, rule.parts(asked.heldout)[0], seeds)
        if followed:
            return followed, dict.fromkeys(followed, f"of {rule.data.name}")
    labels = parse.labels(asked.labels, len(seeds), denoiser)
    condition = read_condition(asked.condition, len(seeds), denoiser)
    found = {"labels": None if labels is None else torch.as_tensor(labels), "condition": condition}
    told = {"labels": asked.labels, "condition": None if asked.condition is None else str(asked.condition)}
    return (
        {name: c for name, c in found.items() if c is not None},
        {name: text for name, text in told.items() if text is not None},
    )


def guidance_facts(asked: Asked, source: Source, nfe: int | None) -> dict[str, Any]:
    """Settings of the guidance and what it costs; empty without."""
    from ..analysis.evaluation_sources import FromModel
    from ..guidance import Guided

    denoiser = source.denoiser if isinstance(source, FromModel) else None
    if not isinstance(denoiser, Guided):
        return {}
    if not denoiser.main_calls:  # all chunks were there: one sample is drawn to see how often each network is asked
        source.read([0])
    return asked.guidance.facts(denoiser, nfe or 0)


def training_of(denoiser: Denoiser) -> dict[str, Any]:
    """Images seen and the average of weights, where the model says so."""
    training = getattr(denoiser, "info", {}).get("training") or {}
    config = training.get("config") or {}
    usual = {"kind": "half_life", "halflife": config.get("ema_halflife"), "ramp": config.get("ema_ramp")}
    return {
        "images_seen": training.get("images_seen"),
        "ema": training.get("ema") or (usual if usual["halflife"] else None),
    }


def _given(name: str, asked: Asked) -> tuple[FromData, dict[str, Any]]:
    """Samples in a folder or a file, and what its samples.json says of them."""
    from ..analysis.evaluation_sources import FromData

    for option, value in (("--guidance", asked.guidance.weight or asked.guidance.guide or asked.guidance.interval),
                          ("--labels", asked.labels), ("--condition", asked.condition), ("--seeds", asked.seeds),
                          ("--steps", asked.steps), ("--nfe", asked.nfe), ("--set", asked.settings)):  # fmt: skip
        if value is not None:
            what = "folder of samples" if Path(name).is_dir() else "file of samples"
            raise ValueError(f"{option}: {name} is a {what}; only a MODEL can be asked for it")
    inner = Path(name) / "samples.npz"
    data = read_data(str(inner) if inner.is_file() else name)
    n = (asked.num or len(data) // asked.repeat) * asked.repeat
    if not 5 * asked.repeat <= n <= len(data):
        raise ValueError(f"--num: {asked.repeat} x {n // asked.repeat} of the {len(data)} samples in {name}; "
                         "expected at least 5, and no more than there are")  # fmt: skip
    record = _record(Path(name))
    facts: dict[str, Any] = {"samples": name, "fingerprint": data.fingerprint()}
    facts |= {key: record[key] for key in ("model", "sampler", "nfe", "guidance") if record.get(key) is not None}
    return FromData(data, n, _labels(record, data)), facts


def _record(folder: Path) -> dict[str, Any]:
    """What `sample` wrote of the samples in a folder; nothing for others."""
    import json

    file = folder / "samples.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _labels(record: dict[str, Any], data: Dataset) -> Tensor | None:
    """The asked labels in the order of the samples: files are read by name, and seeds may have come in any order."""
    import torch

    if record.get("labels") is None or len(record["labels"]) != len(data):
        return None
    labels, seeds = torch.tensor(record["labels"]), record.get("seeds") or []
    rows = {f"{seed:06d}": row for row, seed in enumerate(seeds)}
    stems = [Path(name).stem for name in data.names or ()]
    return labels[[rows[stem] for stem in stems]] if stems and rows.keys() == {*stems} else labels


def described(sampler: Sampler | dict[str, Any]) -> str:
    """A sampler in a few words: solver, time steps and what is not as usual."""
    s = sampler if isinstance(sampler, dict) else sampler.to_dict()
    unusual = [f"{role} {s[role]['kind']}" for role, usual in (("schedule", "edm"), ("scaling", "none"),
               ("stochasticity", "none")) if s[role]["kind"] != usual]  # fmt: skip
    return ", ".join([f"{s['solver']['kind']} with {s['steps']} {s['timesteps']['kind']} steps", *unusual])
