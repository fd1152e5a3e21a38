"""Features of the Inception-v3 of 2015: those of the FID, with weights that the user has or asks to be fetched."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import field
from pathlib import Path

import torch
from torch import Tensor

from ..component import require
from ..download import fetched, home
from ..errors import FormatError
from ..files import sha256
from ..progress import bar
from .features import Features
from .inception_network import LEVELS, InceptionNetwork, network_of, resized

MICRO_BATCH = 4  # always as many images at a time, so that the size of a batch does not show in float32
MICRO_BATCH_GPU = 64
PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of that file, 95,628,359 bytes
FOLDER = "weights"  # of the cache
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"


class Inception(Features, kind="inception"):
    """Features of images (1 or 3, H, W) of any size by the Inception-v3 of 5 December 2015 (Szegedy et al. 2016).

    Images are rounded to 256 levels, grey ones repeated as red, green and blue, and resized to 299x299 as the graph of
    2015 does it; computed in float32 (without TF32), a few images at a time. On the last level of the published
    weights the Fréchet distance is the FID (Heusel et al. 2017) and is called so; anywhere else it is not.

    weights: a file of the 472 tensors by their published names: a torch file, read without executing it, or
    safetensors. level: 64, 192, 768 or 2048 features, averaged over space. sha256: of the file; filled in, or compared
    where it is given. published: a declaration that the file holds the published weights, for one that was converted.
    Equal when level and sha256 are: then the features are.

    Raises FileNotFoundError; ValueError for another level; FormatError for a file that is not of this network, or
    whose SHA-256 is another.
    """

    weights: str = field(compare=False)
    level: int = LEVELS[-1]
    sha256: str = ""
    published: bool = field(default=False, compare=False)

    @classmethod
    def download(
        cls, level: int = LEVELS[-1], *, folder: str | Path | None = None, progress: bool = False
    ) -> Inception:
        """The published weights, 96 MB: fetched into `folder` (None: that of the cache) if they are not there.

        The file takes its name when its SHA-256 is the published one. progress: whether to show a bar, on terminals.
        Raises FormatError for what has another SHA-256, ConnectionError where there is no network, and OSError.
        """
        require(level in LEVELS, f"level: got {level}; expected {', '.join(map(str, LEVELS))}")
        place = home() / FOLDER if folder is None else Path(folder).expanduser()
        try:
            with bar("fetching the weights (MiB)", progress) as report:
                path = fetched(URL, place, report, digest=PUBLISHED)
        except ConnectionError as error:
            raise ConnectionError(f"{error}; or fetch it elsewhere, and name the file: inception:FILE") from error
        return cls(str(path), level)

    def validate(self) -> None:
        """Read the weights, so that a wrong file shows before any sample is drawn."""
        require(self.level in LEVELS, f"level: got {self.level}; expected {', '.join(map(str, LEVELS))}")
        path = Path(self.weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.weights}: no such file of weights; the published one is at {URL}, and is fetched from "
                "there by: --features inception:download"
            )
        found = sha256(path)
        if self.sha256 and self.sha256.lower() != found:
            raise FormatError(f"{path}: its SHA-256 is {found}, not {self.sha256}; it is another file")
        object.__setattr__(self, "sha256", found)
        _network(str(path), found, "cpu")

    @property
    def is_fid(self) -> bool:
        """Whether the Fréchet distance on these features is the FID."""
        return self.level == LEVELS[-1] and (self.published or self.sha256 == PUBLISHED)

    @property
    def fd_name(self) -> str:
        """FID, or Fréchet distance for other weights or another level."""
        return "FID" if self.is_fid else super().fd_name

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the samples are grey or RGB images."""
        require(
            len(shape) == 3 and shape[0] in (1, 3) and min(shape) >= 1,
            f"features 'inception' read grey or RGB images (1 or 3, H, W), got {shape}; use 'identity' for vectors",
        )

    def dim(self, shape: tuple[int, ...]) -> int:
        """The level."""
        self.check(tuple(shape))
        return self.level

    def extract(self, batch: Tensor) -> Tensor:
        """The features (B, level) of one batch in [-1, 1]."""
        device = batch.device
        network = _network(str(Path(self.weights).expanduser()), self.sha256, str(device))
        size = MICRO_BATCH if device.type == "cpu" else MICRO_BATCH_GPU
        with without_tf32(device):
            found = [self._read(network, part, size) for part in batch.split(size)]
        return torch.cat(found).to(batch)

    def _read(self, network: InceptionNetwork, part: Tensor, size: int) -> Tensor:
        levels = levels_of(part)
        padding = levels.new_zeros(size - len(part), *part.shape[1:])
        images = resized(torch.cat([levels, padding]).expand(-1, 3, -1, -1))
        return network(images.contiguous(memory_format=torch.channels_last), self.level)[: len(part)]

    def __str__(self) -> str:
        return f"{self.kind} {self.level} {self.sha256[:8]}"


def levels_of(images: Tensor) -> Tensor:
    """Images in [-1, 1] rounded to the 256 levels of a picture file, 0 to 255 in float32."""
    return (127.5 * images + 128).clamp(0, 255).floor().float()


def without_tf32(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Convolutions in float32 proper: by default a GPU rounds their factors to 10 bits."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@functools.lru_cache(maxsize=2)
def _network(path: str, digest: str, device: str) -> InceptionNetwork:
    """The network of a file with this SHA-256, on a device."""
    from ..foreign import tensors

    if sha256(Path(path)) != digest:
        raise FormatError(f"{path}: has changed since its SHA-256 was taken")
    return network_of(tensors(path), path).to(device)
