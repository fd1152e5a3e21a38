"""What the commands share: the types of their arguments and options, and loading what those name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from ..data import Dataset
    from ..denoiser import Denoiser
    from ..guidance import Guided
    from ..metrics import Features
    from ..sampler import Sampler
    from ..training import TrainConfig

ModelArg = Annotated[
    str,
    typer.Argument(
        help="Model or run directory, folder of diffusers, owner/name on the hub, or exact:DATA, the exact denoiser.",
        show_default=False,
    ),
]
DataArg = Annotated[
    str,
    typer.Argument(
        help="'digits' (built in), a folder or .zip of images, .npz, .npy, .csv, CIFAR's or MNIST's files, shards "
        "x-{000..099}.tar, hf:owner/name.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE...", help="Replace elements: solver=rk2 solver.alpha=0.6 stochasticity=churn"
    ),
]
SamplerOption = Annotated[str, typer.Option("--sampler", help="edm, vp, ve, iddpm, model (its own), or a .json file.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Noise levels above 0; NFE = 2 steps - 1 with Heun.")]
NfeOption = Annotated[
    int | None,
    typer.Option("--nfe", min=1, help="As many steps as this number of network evaluations a sample pays for."),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels", "--class", help="Classes dealt in turn: 0-9; vectors: 0.5,1;2,3; .npy, .csv. Default: by seed."
    ),
]
BatchOption = Annotated[int, typer.Option("--batch-size", "--batch", min=1, help="Samples at a time.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps.")]
TimeLimitOption = Annotated[
    str | None, typer.Option("--time-limit", help="When it saves its state and stops: seconds, 3h50m, 3:50:00.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
GuidanceOption = Annotated[
    float | None,
    typer.Option("--guidance", metavar="W", help="Guidance weight, 1 for none: classifier-free, or see --guide."),
]
GuideOption = Annotated[
    str | None,
    typer.Option(
        "--guide", metavar="MODEL", help="Guide by this worse (autoguidance) or unconditional model, with --guidance."
    ),
]
GuidanceIntervalOption = Annotated[
    str | None, typer.Option("--guidance-interval", metavar="LO,HI", help="Guide at noise levels in (LO, HI] only.")
]
FeaturesOption = Annotated[
    str | None,
    typer.Option(
        "--features",
        metavar="FILE|NAME",
        help="What distances are measured on: a file of `elucidiff classifier`, inception:FILE or inception:download "
        "(the FID), dinov2[:download] (FD-DINOv2), module:function, FILE.py:function, digits, pyramid or identity. "
        "Default: by the data.",
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME", help="cifar10, ffhq64, imagenet64, edm2-xs, mnist, ...: see ed.recipes."),
]
DOWNLOAD = "download"  # among the settings of features: fetch the weights, which nothing does unasked
TORCH_SUFFIXES = (".pth", ".pt", ".pkl")
METRICS_HELP = (
    "fd, kd, agreement, is, precision, recall, density, coverage (prdc: these four), swd, energy, mmd, nearest."
)
MICRO_BATCH = 16  # fixed, so that samples are the same bits whatever --batch-size is


def load_model(model: str, device: str) -> Denoiser:
    """The denoiser that MODEL names, on a device, with a progress bar."""
    from ..models import load
    from ..progress import bar

    with bar("loading") as report:
        denoiser = load(model, progress=report)
    return denoiser.to(checked_device(device))


class GuidanceAsked(NamedTuple):
    """What --guidance, --guide and --guidance-interval say."""

    weight: float | None
    guide: str | None
    interval: str | None

    def of(self, denoiser: Denoiser, device: str) -> Guided | None:
        """The denoiser guided as asked; None when nothing was asked. Raises ValueError for options without a weight."""
        from ..guidance import Auto, ClassifierFree
        from . import parse

        if self.weight is None:
            if self.guide is not None or self.interval is not None:
                raise ValueError("--guide and --guidance-interval only say how to guide: give --guidance too, e.g. 2")
            return None
        ends = None if self.interval is None else parse.interval(self.interval, "guidance-interval")
        second = None if self.guide is None else load_model(self.guide, device)
        if second is None or (denoiser.label_dim and not second.label_dim):
            return ClassifierFree(denoiser, self.weight, ends, unconditional=second)
        return Auto(denoiser, second, self.weight, ends)

    def facts(self, guided: Guided | None, nfe: int) -> dict[str, Any]:
        """For the provenance, after a run: settings, and evaluations of networks a sample. Empty when unguided."""
        if guided is None:
            return {}
        evaluations = round(nfe * guided.network_calls / guided.main_calls, 2)
        return {"guidance": guided.settings() | {"guide": self.guide, "network_evaluations": evaluations}}


def checked_device(name: str) -> str:
    """The name of a device that exists here. Raises ValueError otherwise."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} is not available here ({str(error).splitlines()[0]})") from error
    return name


def read_data(data: str, config: TrainConfig | None = None) -> Dataset:
    """The data set that DATA names, with a progress bar; kept and skipped as a training configuration asks."""
    from .. import data as datasets
    from ..progress import bar

    with bar("reading data") as report:
        if config is None:
            return datasets.load(data, report)
        return datasets.load(data, report, cache=config.cache, on_bad_data=config.on_bad_data)


def chosen_features(name: str | None) -> Features | None:
    """The extractor of --features: a file that `elucidiff classifier` wrote, or a kind; None leaves it to the data.

    inception:FILE are the features of the FID, inception:FILE,level=768 those of another level. A torch file needs no
    "inception:", and "inception" alone takes the file that the variable ELUCIDIFF_INCEPTION names; inception:download
    fetches it once. dinov2:NAME is a size (small, base, large, giant), a folder or owner/name of the hub, and
    dinov2:NAME,download fetches it. module:function and FILE.py:function are the user's own.
    """
    from ..errors import unknown
    from ..metrics import Features, Inception, load_classifier
    from ..metrics.named import is_named

    if name is None:
        return None
    kind, _, rest = name.partition(":")
    if kind == "inception":
        return _inception(rest)
    if kind == "dinov2":
        return _dinov2(rest)
    if is_named(name) and not Path(name).exists():
        return _named(name)
    if Path(name).suffix in TORCH_SUFFIXES:
        return Inception(name)
    if name in (kinds := Features.kinds()):
        return kinds[name]()
    if Path(name).suffix or Path(name).with_name(Path(name).name + ".json").exists():
        return load_classifier(name)
    raise ValueError(unknown("features", name, kinds) + "; of your own data: elucidiff classifier DATA --out FILE")


def _inception(text: str) -> Features:
    """The features of FILE,level=2048,sha256=...,published=true; of the file in the environment when none is named."""
    from ..metrics import Inception
    from . import parse

    file, settings, download = _file_and_settings(text)
    if download:
        if file:
            raise ValueError(f"--features inception: got {file} and download; one of them names the weights")
        return parse.apply_settings(Inception.download(progress=True), settings)
    file = file or os.environ.get("ELUCIDIFF_INCEPTION", "")
    if not file:
        raise ValueError(
            "--features inception: needs its weights: inception:FILE, or FILE in ELUCIDIFF_INCEPTION, or "
            "inception:download, which fetches 96 MB once"
        )
    return parse.apply_settings(Inception(file), settings)


def _dinov2(text: str) -> Features:
    """The features of SIZE, FOLDER or owner/name,sha256=...; ViT-L when none is named; "download" fetches them."""
    from ..metrics import DINOv2
    from ..metrics.dinov2 import SIZES
    from . import parse

    name, settings, download = _file_and_settings(text)
    name = f"facebook/dinov2-{name or 'large'}" if name in ("", *SIZES) else name
    return parse.apply_settings(DINOv2.download(name) if download else DINOv2(name), settings)


def _file_and_settings(text: str) -> tuple[str, list[str], bool]:
    """What FILE,NAME=VALUE,... names, and whether "download" is among it."""
    words = [word for word in text.split(",") if word]
    file = words[0] if words and words[0] != DOWNLOAD and not text.startswith(",") else ""
    return file, [word for word in words if word not in (file, DOWNLOAD)], DOWNLOAD in words


def _named(name: str) -> Features:
    """The features of a function of the user's own, whose module may lie in the working directory."""
    from ..metrics import named_features

    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    return named_features(name)


def chosen_recipe(name: str | None) -> TrainConfig:
    """The recipe of --recipe; None is the default configuration, whose network follows from the data."""
    from ..recipes import recipe
    from ..training import TrainConfig

    return TrainConfig() if name is None else recipe(name)


def is_model(path: str) -> bool:
    """Whether a MODEL argument names a model, rather than data or samples."""
    folder = Path(path)
    named = path.startswith(("exact:", "hf://"))
    of_diffusers = any((folder / name).is_file() for name in ("model_index.json", "scheduler/scheduler_config.json"))
    return named or of_diffusers or (folder / "model.json").is_file() or (folder / "snapshots").is_dir()


def chosen_sampler(
    denoiser: Denoiser,
    name: str,
    settings: list[str] | None,
    steps: int | None,
    published: dict[str, float | None] | None = None,
    churn: dict[str, float | None] | None = None,
    nfe: int | None = None,
) -> Sampler:
    """The sampler of --sampler, --steps, the published spellings, and --set; last comes --nfe, in the place of --steps.

    Raises ValueError for settings that cannot be, and for a budget that is too small or does not say how many steps.
    """
    from . import parse

    given = [f"{key}={value}" for key, value in (published or {}).items() if value is not None]
    churns = [f"stochasticity.{key}={value}" for key, value in (churn or {}).items() if value is not None]
    if churns:
        given += ["stochasticity=churn", *churns]
    if steps is not None:
        given.append(f"steps={steps}")
    sampler = parse.apply_settings(parse.sampler(name, denoiser), [*given, *(settings or [])])
    return sampler if nfe is None else _at_budget(sampler, nfe, steps, denoiser)


def _at_budget(sampler: Sampler, nfe: int, steps: int | None, denoiser: Denoiser) -> Sampler:
    from ..analysis.budget import at_budget

    if steps is not None:
        raise ValueError("--nfe: says how many steps; leave --steps out")
    found = at_budget(sampler, nfe, denoiser.shape or (1,), denoiser)
    if found is None:
        raise ValueError(f"--nfe: {nfe} is less than {sampler.solver.kind} needs for its fewest steps")
    return found[0]


def check_resumable(out: Path, store: str) -> None:
    """Raise where a folder holds anything but earlier measurements, or no picture could be drawn at the end."""
    import importlib.util

    from ..errors import MissingExtraError
    from ..files import refuse_existing

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")
    if (out / store).is_file():
        print(f"going on from what is stored in {out / store}", file=sys.stderr)
    else:
        refuse_existing(out)
