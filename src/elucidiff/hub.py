"""The Hugging Face hub as a place for model folders: names, download, upload. Only data files are ever fetched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from ._version import __version__
from .errors import MissingExtraError

_PREFIX = "hf://"
# What a model of ours and a pipeline of diffusers consist of; no code, no pickles, no text encoders of gigabytes.
_PARTS = ("unet", "transformer", "prior", "vae", "vqvae")
PATTERNS = [
    *("model.json", "manifest.json", "model.safetensors", "README.md"),
    *(
        "model_index.json",
        "config.json",
        "scheduler_config.json",
        "diffusion_pytorch_model*.safetensors*",
        "scheduler/*.json",
    ),
    *(f"{part}/*.{ending}" for part in (*_PARTS, "scheduler") for ending in ("json", "safetensors")),
]


class Repository(NamedTuple):
    """owner/name on the hub, at a revision (branch, tag or commit; None: the newest)."""

    id: str
    revision: str | None = None


def repository(text: str) -> Repository | None:
    """What "owner/name", "owner/name@revision" or the same after hf:// names; None for anything else."""
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:@([\w./-]+))?", text.removeprefix(_PREFIX), re.ASCII)
    return Repository(found[1], found[2]) if found else None


def wanted(text: str) -> Repository | None:
    """The repository that a model's name means: any after hf://; else owner/name where no folder `owner` is here."""
    named = repository(text)
    if named is None or text.startswith(_PREFIX):
        return named
    return None if Path(text.split("/")[0]).exists() else named


def download(named: Repository) -> Path:
    """The folder, in the hub's own cache, of a repository's model: JSON and safetensors only.

    Raises FileNotFoundError for what the hub does not give, MissingExtraError without huggingface_hub.
    """
    library = _library()
    try:
        folder = library.snapshot_download(
            named.id,
            revision=named.revision,
            allow_patterns=PATTERNS,
            library_name="elucidiff",
            library_version=__version__,
        )
    except (OSError, ValueError, RuntimeError) as error:  # not found, no access, no network, a name it refuses
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FileNotFoundError(
            f"{named.id}: no such model here, and none by that name could be fetched from the hub ({reason})"
        ) from error
    return Path(folder)


def upload(folder: Path, named: str, *, private: bool, update: bool, message: str) -> str:
    """Put a folder into a repository of the hub as one commit; returns its address.

    Raises FileExistsError for a repository that is there already, unless `update`; ValueError for a bad name.
    """
    if repository(named) != Repository(named):
        raise ValueError(f"push: got {named!r}; expected owner/name")
    api = _library().HfApi(library_name="elucidiff", library_version=__version__)
    if api.repo_exists(named) and not update:
        raise FileExistsError(f"{named}: exists on the hub; give update=True to add a commit, or another name")
    api.create_repo(named, private=private, exist_ok=True)
    api.upload_folder(repo_id=named, folder_path=str(folder), commit_message=message)
    return f"https://huggingface.co/{named}"


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hub") from None
    return huggingface_hub
