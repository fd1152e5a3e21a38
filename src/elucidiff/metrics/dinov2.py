"""Features of DINOv2: those of the FD-DINOv2, through transformers, with weights that are on this machine."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import hub
from ..component import require
from ..errors import FormatError, MissingExtraError
from ..files import sha256
from .features import Features
from .inception import levels_of, without_tf32

MICRO_BATCH = 4  # always as many images at a time, so that the size of a batch does not show in float32
MICRO_BATCH_GPU = 32
SIDE = 224  # pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue in [0, 1]
OFFSET = 0.1  # patches that the published code adds to the side before it rescales the table of positions
SIZES = ("small", "base", "large", "giant")  # facebook/dinov2-SIZE on the hub
LARGE = (1024, 24)  # features and blocks of the network of the published FD-DINOv2
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class DINOv2(Features, kind="dinov2"):
    """Features of images (1 or 3, H, W) of any size by DINOv2 (Oquab et al. 2023): of ViT-L/14, those of the FD-DINOv2.

    As Stein et al. (2023) measure it: images are rounded to 256 levels, grey ones repeated as red, green and blue,
    resized to 224x224 as Pillow does it (bicubic, antialiased, rounded to levels), and normalised by ImageNet's mean
    and deviation; the feature is the class token after the last layer norm. The table of positions is rescaled as the
    published code does it, whatever the release of transformers does. Computed in float32, a few images at a time.

    weights: a folder of config.json and model.safetensors, or owner/name of the hub where it is in the hub's cache;
    nothing is fetched (see `download`). sha256: of model.safetensors; filled in, or compared where it is given.

    Raises FileNotFoundError, MissingExtraError without transformers, and FormatError for files that are not of such a
    network, or whose SHA-256 is another.
    """

    weights: str = field(default="facebook/dinov2-large", compare=False)
    sha256: str = ""

    @classmethod
    def download(cls, weights: str = "facebook/dinov2-large") -> DINOv2:
        """The features by owner/name of the hub, fetched into the hub's cache if it is not there: 1.2 GB for ViT-L.

        Raises ValueError for another name, FileNotFoundError for what the hub does not give.
        """
        named = hub.repository(weights)
        if named is None:
            raise ValueError(f"dinov2: got {weights!r}; expected owner/name of the hub, e.g. facebook/dinov2-base")
        _library()
        hub.download(named)
        return cls(weights)

    def validate(self) -> None:
        """Read the weights, so that a wrong file shows before any sample is drawn."""
        folder = _folder(self.weights)
        found = sha256(folder / WEIGHTS)
        if self.sha256 and self.sha256.lower() != found:
            raise FormatError(f"{folder / WEIGHTS}: its SHA-256 is {found}, not {self.sha256}; it is another file")
        object.__setattr__(self, "sha256", found)
        _loaded(str(folder), found, "cpu")

    @property
    def fd_name(self) -> str:
        """FD-DINOv2; of other sizes than ViT-L, with the number of features."""
        config = self._network().config
        published = (config.hidden_size, config.num_hidden_layers) == LARGE
        return "FD-DINOv2" if published else f"FD-DINOv2 ({config.hidden_size} features)"

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are grey or RGB images."""
        require(
            len(shape) == 3 and shape[0] in (1, 3) and min(shape) >= 1,
            f"features 'dinov2' read grey or RGB images (1 or 3, H, W), got {shape}; use 'identity' for vectors",
        )

    def dim(self, shape: tuple[int, ...]) -> int:
        """The width of the network: 384, 768, 1024 or 1536."""
        self.check(tuple(shape))
        return int(self._network().config.hidden_size)

    def extract(self, batch: Tensor) -> Tensor:
        """The features of one batch in [-1, 1]."""
        device = batch.device
        network, size = self._network(device), MICRO_BATCH if device.type == "cpu" else MICRO_BATCH_GPU
        with without_tf32(device):
            found = [_read(network, part, size) for part in batch.split(size)]
        return torch.cat(found).to(batch)

    def _network(self, device: torch.device | str = "cpu") -> Any:
        return _loaded(str(_folder(self.weights)), self.sha256, str(device))

    def __str__(self) -> str:
        return f"{self.kind} {self._network().config.hidden_size} {self.sha256[:8]}"


def pixels(images: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) in [-1, 1] -> what the network reads, (B, 3, 224, 224) in float32."""
    levels = levels_of(images).expand(-1, 3, -1, -1)
    for size in ((images.shape[2], SIDE), (SIDE, SIDE)):  # Pillow rounds after each axis
        levels = F.interpolate(levels, size=size, mode="bicubic", antialias=True).clamp(0, 255).round()
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (levels / 255 - mean) / std


def positions(table: Tensor, side: int) -> Tensor:
    """The table of positions (1, 1 + M^2, d) for side x side patches: (1, 1 + side^2, d), the class token's first.

    Bicubic, sampled at (j + 1/2) M / (side + 0.1) - 1/2: the published features depend on that tenth.
    """
    old = math.isqrt(table.shape[1] - 1)
    if old == side:
        return table
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / old
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).mT], dim=1)


def _read(network: nn.Module, part: Tensor, size: int) -> Tensor:
    padding = part.new_zeros(size - len(part), *part.shape[1:])
    return network(pixel_values=pixels(torch.cat([part, padding]))).last_hidden_state[: len(part), 0]


def _folder(weights: str) -> Path:
    """The folder that holds the weights. Raises FileNotFoundError when there is none on this machine."""
    folder, named = Path(weights).expanduser(), hub.repository(weights)
    if not folder.is_dir() and named is not None:
        found = _library("huggingface_hub").try_to_load_from_cache(named.id, WEIGHTS, revision=named.revision)
        folder = Path(found).parent if isinstance(found, str) else folder
    hub_name = "facebook/dinov2-large" if named is None else weights
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{weights}: no folder with {CONFIG} and {WEIGHTS}, and not in the hub's cache of this machine; "
                f"a name of the hub is fetched by: --features dinov2:{hub_name},download"
            )
    return folder


@functools.lru_cache(maxsize=2)
def _loaded(folder: str, digest: str, device: str) -> Any:
    """The network of a folder whose weights have this SHA-256, on a device."""
    config = _config(Path(folder))
    library = _library()
    try:
        with torch.random.fork_rng([]), _without_bars(library):
            network, info = library.Dinov2Model.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"{folder}: not a DINOv2 ({str(error).strip().splitlines()[0]})") from error
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info.get(what):  # otherwise at random
            raise FormatError(f"{folder}: not the weights of this network: {what} {sorted(map(str, info[what]))[0]}")
    network = network.float().eval().requires_grad_(False)
    table = positions(network.embeddings.position_embeddings, SIDE // config["patch_size"])
    network.embeddings.position_embeddings = nn.Parameter(table, requires_grad=False)
    return network.to(device)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, patch = config["model_type"], config.setdefault("patch_size", 14)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{folder / CONFIG}: not the configuration of a network ({error!r})") from error
    if kind != "dinov2" or not isinstance(patch, int) or patch < 1 or SIDE % patch:
        raise FormatError(f"{folder / CONFIG}: is of a {kind!r} of patches of {patch}; expected 'dinov2' of 14")
    return config


@contextmanager
def _without_bars(library: Any) -> Iterator[None]:
    """Without the bars that transformers shows also where there is no terminal."""
    settings = library.utils.logging
    shown = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            settings.enable_progress_bar()


def _library(name: str = "transformers") -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(name, "dinov2") from None
