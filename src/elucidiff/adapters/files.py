"""Files of other projects, recognised by what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..denoiser import Preconditioned
from ..errors import FormatError
from ..foreign import clip, is_foreign, read, state_dict
from . import guided_diffusion, k_diffusion_checkpoint, nvlabs, score_sde
from .building import of_file


def load_file(path: str | Path) -> Preconditioned:
    """The denoiser of a file that NVIDIA's EDM and EDM2, k-diffusion, score_sde or guided-diffusion wrote.

    Each with the assumptions of its adapter's `load`, which has arguments for what a file does not say. Raises
    FileNotFoundError, and FormatError for every other file.
    """
    if Path(path).exists() and not is_foreign(path):
        raise FormatError(f"{path}: a file that is no model; expected a model directory with model.json, "
                          "a run directory, weights of a known project, or exact:DATA")  # fmt: skip
    value = read(path)
    if nvlabs.is_snapshot(value):
        return nvlabs.from_value(value, path)
    if k_diffusion_checkpoint.recognises(value):
        return k_diffusion_checkpoint.from_value(value, path)
    with of_file(path):
        if score_sde.recognises(value):
            return score_sde.from_value(value)
        state = _only_state(value, str(path))
        if guided_diffusion.recognises(state):
            return guided_diffusion.from_state(state)
        names = ", ".join(clip(name) for name in sorted(state)[:3])
        raise FormatError(
            f"tensors ({names}, ...) of no network that this reads: expected snapshots of EDM or EDM2, "
            "or checkpoints of k-diffusion, score_sde or guided-diffusion"
        )


def _only_state(value: Any, path: str) -> dict[str, Tensor]:
    try:
        return state_dict(value, path)
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(f"{error}; load it with ed.adapters.guided_diffusion.load(path, key)") from None
