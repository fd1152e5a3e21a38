"""Our solvers as functions of k-diffusion's form, `sample(model, x, sigmas, extra_args, callback, disable)`.

`load` reads k-diffusion's checkpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..component import require
from ..denoiser import Denoiser, evaluation_mode
from ..formulation import EDM, Scaling, Schedule, Unscaled
from ..progress import bar
from ..seeds import Seeds, check_seeds
from ..solvers import Deterministic, Run, Solver, State, Stochasticity
from .k_diffusion_checkpoint import load

__all__ = ["SampleFunction", "load", "sampler"]

_NO_NOISE, _SIGMA_IS_TIME, _UNSCALED = Deterministic(), EDM(), Unscaled()


class SampleFunction(Protocol):
    """The function form of k-diffusion, see `sampler`."""

    def __call__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Samples (B, *) at the last of the levels."""
        ...


def sampler(
    solver: Solver,
    stochasticity: Stochasticity = _NO_NOISE,
    *,
    schedule: Schedule = _SIGMA_IS_TIME,
    scaling: Scaling = _UNSCALED,
) -> SampleFunction:
    """A function of k-diffusion's form for any of our solvers.

        sample_heun = ed.adapters.k_diffusion.sampler(ed.solvers.Heun(), ed.solvers.Churn(S_churn=40))
        images = sample_heun(model, torch.randn(4, 3, 32, 32) * sigmas[0], sigmas)

    Arguments of the function:
        model: called as model(x, sigma, **extra_args) -> D with sigma (B,) in the dtype of x. An `ed.Denoiser` gets
            the level as `ed.sample` gives it.
        x: noise (B, *) times sigmas[0], or an image and such noise. Its dtype and device are kept.
        sigmas: noise levels, strictly decreasing, that end in 0 or not; a tensor or a list.
        extra_args: passed to the model.
        callback: called after every step with a dict of i, x and denoised = D(x; sigma_hat) at its beginning, sigma
            and sigma_hat, the levels before and after churn.
        disable: no progress bar when True (and none where stderr is not a terminal).
        seeds: one a sample, for the noise that the solver draws; the same noise as in `ed.sample` with these seeds.
            When left out, each row of x is its own seed: the global random state is neither read nor changed.

    The bits are those of `ed.sample` at the same levels (with a scaling: up to the rounding of s x). An
    adaptive solver runs one sample after the other, and so calls model and callback with B = 1. The
    function raises ValueError for levels that do not fall, and for a number of seeds that is not B.
    """

    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Samples (B, *) at the last of the levels."""
        levels, batch = _checked_levels(sigmas), len(x)
        require(batch >= 1, "x: got no samples; expected (B, *) with B >= 1")
        denoiser = model if isinstance(model, Denoiser) else _Model(model)
        all_seeds = _checked_seeds(seeds, x) if solver.draws or stochasticity.draws else None
        size = 1 if solver.adaptive else batch
        samples = []
        with torch.no_grad(), evaluation_mode(denoiser), bar("sampling", not disable) as report:
            for start in range(0, batch, size):
                rows = slice(start, start + size)
                noise = None if all_seeds is None else _noise(all_seeds[rows], x, denoiser.label_dim)
                conditions = {name: _part_of(value, rows, batch) for name, value in (extra_args or {}).items()}
                run = Run(denoiser, schedule, scaling, noise, conditions, max(solver.memory, 1))
                part = _scaled(x[rows], run.scale(run.clock.grid(levels)[0]))
                for state in run.states(part, levels, solver, stochasticity):
                    part = _scaled(state.x, 1 / run.scale(state.t))
                    if callback:
                        callback(_told(run, state, levels))
                    report(start * state.steps + len(part) * (state.i + 1), batch * state.steps)
                samples.append(part)
        return torch.cat(samples)

    sample.__name__ = sample.__qualname__ = f"sample_{solver.kind}"
    return sample


def _told(run: Run, state: State, levels: Tensor) -> dict[str, Any]:
    """What a callback of k-diffusion's form receives: the beginning of the step that was just taken."""
    begun = run.past[-1]
    return {
        "x": _scaled(begun.x, 1 / run.scale(begun.t)),
        "i": state.i,
        "sigma": levels[state.i],
        "sigma_hat": levels.new_tensor(state.sigma_hat),
        "denoised": state.denoised,
    }


class _Model(Denoiser):
    """A model of k-diffusion's form: it takes one level a sample, in the dtype of x."""

    def __init__(self, model: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model

    def denoise(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        return self.model(x, x.new_full((len(x),), float(sigma)), **extra_args)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _checked_levels(sigmas: Tensor | Sequence[float]) -> Tensor:
    levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
    falling = levels.ndim == 1 and len(levels) >= 2 and bool((levels[1:] < levels[:-1]).all())
    require(
        falling and bool(levels[0].isfinite()) and bool(levels[-1] >= 0),
        f"sigmas: got {levels.tolist()}; expected at least two finite levels that fall strictly, the last at least 0",
    )
    return levels


def _checked_seeds(seeds: Sequence[int] | None, x: Tensor) -> tuple[int, ...]:
    if seeds is None:
        return tuple(_own_seed(row) for row in x)
    require(len(seeds) == len(x), f"seeds: got {len(seeds)} for {len(x)} samples")
    return check_seeds(seeds)


def _own_seed(row: Tensor) -> int:
    """A seed made of the numbers of one sample: the same start gives the same noise, in whatever batch."""
    digest = hashlib.sha256(row.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _noise(seeds: Sequence[int], x: Tensor, label_dim: int) -> Seeds:
    """The streams where `ed.sample` has them when the first step begins: after the latent and the class."""
    noise = Seeds(seeds)
    noise.normal(x.shape[1:], torch.float32)
    if label_dim:
        noise.integers(label_dim)
    return noise


def _part_of(value: Any, rows: slice, n: int) -> Any:
    per_sample = isinstance(value, Tensor) and value.ndim and len(value) == n
    return value[rows] if per_sample else value
