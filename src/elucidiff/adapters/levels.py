"""The noise levels of a sampler as other programs take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..component import require
from ..denoiser import Denoiser
from ..errors import unknown
from ..sampler import Sampler, sampler_of

if TYPE_CHECKING:
    from ..design import Design

Form = Literal["k_diffusion", "diffusers", "flow"]


def to_sigmas(
    sampler: Sampler | Design, denoiser: Denoiser | None = None, form: Form = "k_diffusion"
) -> Tensor | list[float]:
    """The noise levels of a sampler, narrowed and rounded to those of a denoiser if one is given.

    - "k_diffusion": a float32 tensor (N + 1,) that ends in 0; also what ComfyUI passes as SIGMAS;
    - "diffusers": N numbers without the 0, for `pipeline(..., sigmas=...)` with EulerDiscreteScheduler and its kin;
    - "flow": the same as t = sigma / (1 + sigma), for pipelines of flow models. Their schedulers shift the list
      they are given unless shift = 1.

    Raises ValueError for another form.
    """
    require(form in get_args(Form), unknown("form", form, get_args(Form)))
    sigmas = sampler_of(sampler).sigmas(denoiser)
    if form == "k_diffusion":
        return sigmas.to(torch.float32)
    above = sigmas[sigmas > 0]
    return (above / (1 + above) if form == "flow" else above).tolist()
