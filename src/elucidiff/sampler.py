"""A sampler is a record of choices; `sample` runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import formulation, solvers
from . import timesteps as steps_of
from .component import Value, require
from .denoiser import Denoiser, FixedBatch, as_denoiser, evaluation_mode
from .progress import bar
from .request import Request
from .result import Part, Recordable, Recorder, Result
from .solvers import State

if TYPE_CHECKING:
    from .design import Design


class Sampler(Value):
    """How samples are drawn: the sampling rows of Table 1. The default is EDM's deterministic sampler.

    `steps` counts the noise levels above 0 (NFE = 2 steps - 1 with Heun). `sigma_min` and
    `sigma_max` default to the range of the time steps; both are narrowed to what the denoiser supports.
    `to_zero=False` ends at the last level instead of 0 and leaves its noise in the samples.
    """

    schedule: formulation.Schedule = formulation.EDM()
    scaling: formulation.Scaling = formulation.Unscaled()
    timesteps: steps_of.TimeSteps = steps_of.EDM()
    solver: solvers.Solver = solvers.Heun()
    stochasticity: solvers.Stochasticity = solvers.Deterministic()
    steps: int = 18
    sigma_min: float | None = None
    sigma_max: float | None = None
    to_zero: bool = True

    def validate(self) -> None:
        """Raise ValueError where the steps, the range and the time steps do not fit."""
        require(self.steps >= 1, f"steps: got {self.steps}; expected at least 1")
        require(
            self.to_zero or self.steps >= 2,
            "steps: one level without a step to 0 leaves nothing to do; expected 2 or more",
        )
        self.sigmas()

    def replace(self, **elements: Any) -> Sampler:
        """A copy with some elements replaced; a fixed list of levels brings its own number of steps."""
        listed = elements.get("timesteps")
        if isinstance(listed, steps_of.Fixed):
            elements.setdefault("steps", len(listed.sigmas))
        return super().replace(**elements)

    def _asked_range(self) -> tuple[float, float]:
        low, high = self.timesteps.range()
        return low if self.sigma_min is None else self.sigma_min, high if self.sigma_max is None else self.sigma_max

    def sigmas(self, denoiser: Denoiser | None = None) -> Tensor:
        """The noise levels visited, (steps + 1,) float64 with the final 0; rounded to the denoiser's own levels.

        Without the 0, (steps,), when `to_zero` is False.

        Levels that round to the same one are visited once. Raises ValueError when the asked range
        and the denoiser's do not overlap.
        """
        low, high = self._asked_range()
        if denoiser is not None:
            low, high = max(low, denoiser.sigma_min), min(high, denoiser.sigma_max)
        sigmas = check_levels(self.timesteps(self.steps, low, high))
        if denoiser is not None:
            sigmas = torch.unique_consecutive(torch.cat([denoiser.round_sigma(sigmas[:-1]), sigmas[-1:]]))
        return sigmas if self.to_zero else sigmas[:-1]


def check_levels(sigmas: Tensor) -> Tensor:
    """The levels of any time steps as float64 on the CPU. Raises ValueError unless they fall strictly to 0."""
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64).cpu()
    falling = sigmas.ndim == 1 and len(sigmas) >= 2 and bool((sigmas[1:] < sigmas[:-1]).all())
    if not (falling and bool(sigmas[0].isfinite()) and bool(sigmas[-1] == 0)):  # the text takes 0.3 ms to make
        raise ValueError(f"time steps must fall strictly to 0, got {sigmas}")
    return sigmas


def sample(
    denoiser: Denoiser | Callable[..., Tensor],
    sampler: Sampler | Design | None = None,
    *,
    seeds: Sequence[int] | None = None,
    latents: Tensor | None = None,
    shape: Sequence[int] | None = None,
    labels: Tensor | Sequence[int] | int | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float64,
    record: bool | Collection[Recordable] | None = None,
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
    grad: bool = False,
    **conditions: Any,
) -> Result:
    """Draw samples: integrate Eq. 4 from noise to data (EDM paper, Algorithms 1 and 2).

    Args:
        denoiser: a Denoiser, or any function (x, sigma, **conditions) -> D.
        sampler: a Sampler, or a Design, whose sampler is used; EDM's deterministic one when left out.
        seeds: one integer a sample; sample k depends on its own seed alone.
        latents: unit-variance noise (B, *) to start from instead. Needed beside it: `seeds` for
            samplers that draw noise.
        shape: of one sample; the denoiser's own when it has one.
        labels: class indices (B,) or vectors (B, label_dim), or one class or vector for all. When left out, a
            class-conditional denoiser gets classes drawn from the seeds.
        batch_size: samples at a time; all at once when None. Several batches are padded to equal size.
        dtype: of the state. The network runs in its own.
        record: what the trajectory keeps: "x", "denoised", both (True).
        callback: called with the State after every step.
        progress: show a progress bar.
        grad: keep the graph for backpropagation.
        conditions: passed to the denoiser; tensors of B rows are split with the batch. `condition`, where the model
            has a `conditioning`: one image a sample or one for all, in a form that its `prepare` takes.

    Raises:
        ValueError: for seeds, labels, conditions, shapes or ranges that do not fit, saying what would.
    """
    sampler, denoiser = Sampler() if sampler is None else sampler_of(sampler), as_denoiser(denoiser)
    check_no_elements(conditions)
    request = Request(denoiser, seeds, latents, shape, labels, conditions)
    parts = list(request.parts(1 if sampler.solver.adaptive else batch_size))
    if len(parts) > 1 and not isinstance(denoiser, FixedBatch):
        denoiser = FixedBatch(denoiser, parts[0].stop)  # the last batch may be short
    sigmas = sampler.sigmas(denoiser)
    started = time.perf_counter()
    done: list[Part] = []
    with torch.set_grad_enabled(grad), evaluation_mode(denoiser), bar("sampling", progress) as report:
        for part in parts:
            run, x, part_labels = request.start(denoiser, sampler, part, sigmas, dtype)
            recorder = Recorder(record, sigmas)
            recorder.start(x, run.time(float(sigmas[0])))
            for state in run.states(x, sigmas, sampler.solver, sampler.stochasticity):
                x = state.x
                recorder.add(state)
                if callback:
                    callback(state)
                steps_done = part.start * state.steps + (part.stop - part.start) * (state.i + 1)
                report(steps_done, request.n * state.steps)
            done.append(Part(x, part_labels, run.nfe, recorder.trajectory()))
    seconds = time.perf_counter() - started
    return Result.of_parts(done, seconds=seconds, seeds=request.seeds, sampler=sampler, sigmas=sigmas)


def sample_states(
    denoiser: Denoiser | Callable[..., Tensor],
    sampler: Sampler | Design | None = None,
    *,
    seeds: Sequence[int] | None = None,
    latents: Tensor | None = None,
    shape: Sequence[int] | None = None,
    labels: Tensor | Sequence[int] | int | None = None,
    dtype: torch.dtype = torch.float64,
    **conditions: Any,
) -> Iterator[State]:
    """The same as a generator of States, for streaming and stepping; closing it cancels the run. No gradients."""
    sampler, denoiser = Sampler() if sampler is None else sampler_of(sampler), as_denoiser(denoiser)
    check_no_elements(conditions)
    request = Request(denoiser, seeds, latents, shape, labels, conditions)
    sigmas = sampler.sigmas(denoiser)
    with evaluation_mode(denoiser):
        run, x, _ = request.start(denoiser, sampler, slice(0, request.n), sigmas, dtype)
        states = run.states(x, sigmas, sampler.solver, sampler.stochasticity)
        while True:
            with torch.no_grad():
                state = next(states, None)
            if state is None:
                return
            yield state


def check_no_elements(conditions: Mapping[str, Any]) -> None:
    """Raise TypeError for elements of a sampler among what is passed to the denoiser."""
    for name, value in conditions.items():
        if name in Sampler.__dataclass_fields__:
            raise TypeError(
                f"{name}: an element of the sampler; give a sampler that has it, "
                f"such as ed.EDM.sampler.replace({name}={value!r})"
            )


def sampler_of(choice: Sampler | Design) -> Sampler:
    """The sampler of a design, a sampler as it is. Raises TypeError for anything else."""
    sampler = getattr(choice, "sampler", choice)
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler: got {choice!r}; expected an ed.Sampler or an ed.Design such as ed.EDM")
    return sampler
