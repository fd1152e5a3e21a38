"""A sampler is a record of choices; `sample` runs it and returns a Result with its provenance."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from . import formulation, solvers
from . import timesteps as steps_of
from ._version import __version__
from .component import Value, require
from .data.writing import write_image
from .denoiser import Denoiser, FixedBatch, as_denoiser, one_hot
from .files import folder_written_atomically
from .progress import bar
from .seeds import Seeds, check_seeds
from .solvers import Run, State
from .tensors import widest_dtype

if TYPE_CHECKING:
    from .design import Design

Recordable = Literal["x", "denoised"]


class Sampler(Value):
    """How samples are drawn: the sampling rows of Table 1. The default is EDM's deterministic sampler.

    `steps` counts the noise levels above 0 (NFE = 2 steps - 1 with Heun). `sigma_min` and
    `sigma_max` default to the range of the time steps; both are narrowed to what the denoiser supports.
    """

    schedule: formulation.Schedule = formulation.EDM()
    scaling: formulation.Scaling = formulation.Unscaled()
    timesteps: steps_of.TimeSteps = steps_of.EDM()
    solver: solvers.Solver = solvers.Heun()
    stochasticity: solvers.Stochasticity = solvers.Deterministic()
    steps: int = 18
    sigma_min: float | None = None
    sigma_max: float | None = None

    def validate(self) -> None:
        """Raise ValueError where the steps, the range and the time steps do not fit."""
        require(self.steps >= 1, f"steps: got {self.steps}; expected at least 1")
        self.sigmas()

    def _asked_range(self) -> tuple[float, float]:
        low, high = self.timesteps.range()
        return low if self.sigma_min is None else self.sigma_min, high if self.sigma_max is None else self.sigma_max

    def sigmas(self, denoiser: Denoiser | None = None) -> Tensor:
        """The noise levels visited, (steps + 1,) float64 with the final 0; rounded to the denoiser's own levels.

        Levels that round to the same one are visited once. Raises ValueError when the asked range
        and the denoiser's do not overlap.
        """
        low, high = self._asked_range()
        if denoiser is None:
            return check_levels(self.timesteps(self.steps, low, high))
        low, high = max(low, denoiser.sigma_min), min(high, denoiser.sigma_max)
        sigmas = check_levels(self.timesteps(self.steps, low, high))
        return torch.unique_consecutive(torch.cat([denoiser.round_sigma(sigmas[:-1]), sigmas[-1:]]))


def check_levels(sigmas: Tensor) -> Tensor:
    """The levels of any time steps as float64 on the CPU. Raises ValueError unless they fall strictly to 0."""
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64).cpu()
    falling = sigmas.ndim == 1 and len(sigmas) >= 2 and bool((sigmas[1:] < sigmas[:-1]).all())
    require(
        falling and bool(sigmas[0].isfinite()) and bool(sigmas[-1] == 0),
        f"time steps must fall strictly to 0, got {sigmas}",
    )
    return sigmas


@dataclass(frozen=True)
class Trajectory:
    """A recorded run of N steps: times and levels (N + 1,), what was asked of x (N + 1, B, *) and denoised (N, B, *).

    x[0] is the scaled latent, x[i] the state at sigmas[i]. denoised[i] is the first D of step i,
    evaluated at sigma_hat[i] (N,), which differs from sigmas[i] under churn.
    """

    t: Tensor
    sigmas: Tensor
    sigma_hat: Tensor
    x: Tensor | None
    denoised: Tensor | None


@dataclass(frozen=True)
class Result:
    """Samples and where they came from.

    x: (B, *), in the units of the data. nfe: network evaluations for each sample. seconds: wall
    time. labels: (B, label_dim) or None. sigmas: the levels visited.
    """

    x: Tensor
    nfe: int
    seconds: float
    seeds: tuple[int, ...] | None
    labels: Tensor | None
    sampler: Sampler
    sigmas: Tensor
    trajectory: Trajectory | None = None

    def provenance(self) -> dict[str, Any]:
        """Everything needed to draw the same samples again, as JSON data."""
        try:
            sampler: dict[str, Any] | str = self.sampler.to_dict()
        except TypeError:  # made of Python functions: it can be named, but not be read back
            sampler = repr(self.sampler)
        return {
            "elucidiff": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "sampler": sampler,
            "sigmas": self.sigmas.tolist(),
            "nfe": self.nfe,
            "seconds": round(self.seconds, 3),
            "seeds": self.seeds,
            "labels": None if self.labels is None else self.labels.tolist(),
            "shape": list(self.x.shape),
            "dtype": str(self.x.dtype).removeprefix("torch."),
        }

    def save(self, folder: str | Path, **notes: Any) -> Path:
        """Write the samples (PNG a sample for 1 or 3 channels, else samples.npz) and samples.json into a new folder.

        `notes` are added to the JSON. Raises FileExistsError when the folder has something in it.
        """
        folder = Path(folder)
        with folder_written_atomically(folder) as new:
            names = _file_names(self.seeds or range(len(self.x)))
            if self.x.ndim == 4 and self.x.shape[1] in (1, 3):
                for name, x in zip(names, self.x, strict=True):
                    write_image(new / f"{name}.png", x.detach())
            else:
                import numpy as np

                np.savez(new / "samples.npz", samples=self.x.detach().cpu().numpy())
            (new / "samples.json").write_text(json.dumps(notes | self.provenance(), indent=1) + "\n")
        return folder


def _file_names(seeds: Sequence[int]) -> list[str]:
    """000007 for seed 7; a seed used before, say with another class, gets a number: 000007-1."""
    earlier: Counter[int] = Counter()
    names = []
    for seed in seeds:
        names.append(f"{seed:06d}-{earlier[seed]}" if earlier[seed] else f"{seed:06d}")
        earlier[seed] += 1
    return names


def sample(
    denoiser: Denoiser | Callable[..., Tensor],
    sampler: Sampler | Design,
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
        sampler: a Sampler, or a Design, whose sampler is used.
        seeds: one integer a sample; sample k depends on its own seed alone.
        latents: unit-variance noise (B, *) to start from instead. Needed beside it: `seeds` for
            samplers that draw noise.
        shape: of one sample; the denoiser's own when it has one.
        labels: class indices (B,) or vectors (B, label_dim), or one class for all. When left out, a
            class-conditional denoiser gets classes drawn from the seeds.
        batch_size: samples at a time; all at once when None. Several batches are padded to equal size.
        dtype: of the state. The network runs in its own.
        record: what the trajectory keeps: "x", "denoised", both (True).
        callback: called with the State after every step.
        progress: show a progress bar.
        grad: keep the graph for backpropagation.
        conditions: passed to the denoiser; tensors of B rows are split with the batch.

    Raises:
        ValueError: for seeds, labels, shapes or ranges that do not fit, saying what would.
    """
    sampler = _sampler_of(sampler)
    denoiser = as_denoiser(denoiser)
    batch = _Batch(denoiser, seeds, latents, shape, labels, conditions)
    sigmas = sampler.sigmas(denoiser)
    size = batch.n if batch_size is None else batch_size
    require(size >= 1, f"batch_size: got {batch_size}; expected at least 1")
    if size < batch.n:
        denoiser = FixedBatch(denoiser, size)
    recorded = _wanted(record)
    started = time.perf_counter()
    results: list[tuple[Tensor, int, Tensor | None, Trajectory | None]] = []
    with torch.set_grad_enabled(grad), evaluation_mode(denoiser), bar("sampling", progress) as report:
        for start in range(0, batch.n, size):
            part = slice(start, min(start + size, batch.n))
            run, x, drawn = batch.start(denoiser, sampler, part, sigmas, dtype)
            keeper = _Recorder(recorded, x, run, sigmas)
            for state in run.states(x, sigmas, sampler.solver, sampler.stochasticity):
                keeper.add(state)
                if callback:
                    callback(state)
                report(start * (len(sigmas) - 1) + (part.stop - start) * (state.i + 1), batch.n * (len(sigmas) - 1))
                x = state.x
            results.append((x, run.nfe, drawn, keeper.trajectory()))
    xs, nfes, drawn_labels, trajectories = zip(*results, strict=True)
    return Result(
        x=torch.cat(xs),
        nfe=nfes[0],
        seconds=time.perf_counter() - started,
        seeds=batch.seeds,
        labels=None if drawn_labels[0] is None else torch.cat(drawn_labels),
        sampler=sampler,
        sigmas=sigmas,
        trajectory=_joined(trajectories),
    )


def sample_states(
    denoiser: Denoiser | Callable[..., Tensor],
    sampler: Sampler | Design,
    *,
    seeds: Sequence[int] | None = None,
    latents: Tensor | None = None,
    shape: Sequence[int] | None = None,
    labels: Tensor | Sequence[int] | int | None = None,
    dtype: torch.dtype = torch.float64,
    **conditions: Any,
) -> Iterator[State]:
    """The same as a generator of States, for streaming and stepping; closing it cancels the run. No gradients."""
    sampler = _sampler_of(sampler)
    denoiser = as_denoiser(denoiser)
    batch = _Batch(denoiser, seeds, latents, shape, labels, conditions)
    sigmas = sampler.sigmas(denoiser)
    with evaluation_mode(denoiser):
        run, x, _ = batch.start(denoiser, sampler, slice(0, batch.n), sigmas, dtype)
        states = run.states(x, sigmas, sampler.solver, sampler.stochasticity)
        while True:
            with torch.no_grad():
                state = next(states, None)
            if state is None:
                return
            yield state


def _sampler_of(choice: Sampler | Design) -> Sampler:
    return choice if isinstance(choice, Sampler) else choice.sampler


@contextmanager
def evaluation_mode(denoiser: Denoiser) -> Iterator[None]:
    """Within the block no module trains (dropout off); every module gets its own mode back afterwards."""
    training = [module for module in denoiser.modules() if module.training]
    denoiser.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Batch:
    """What is asked for, checked: how many samples, their seeds or latents, their labels and conditions."""

    def __init__(
        self,
        denoiser: Denoiser,
        seeds: Sequence[int] | None,
        latents: Tensor | None,
        shape: Sequence[int] | None,
        labels: Tensor | Sequence[int] | int | None,
        conditions: dict[str, Any],
    ) -> None:
        require(seeds is not None or latents is not None, "give seeds= (one integer a sample) or latents=")
        self.seeds = None if seeds is None else check_seeds(seeds)
        self.latents, self.conditions, self.label_dim = latents, conditions, denoiser.label_dim
        self.n = len(latents) if latents is not None else len(self.seeds or ())
        require(self.n >= 1, "seeds: got none; expected at least one")
        require(
            self.seeds is None or len(self.seeds) == self.n, f"seeds: got {len(self.seeds or ())} for {self.n} latents"
        )
        own = denoiser.shape if latents is None else tuple(latents.shape[1:])
        require(
            shape is not None or own is not None, "shape= is needed: the denoiser does not know the shape of a sample"
        )
        self.shape = tuple(shape) if shape is not None else tuple(own or ())
        require(own is None or self.shape == own, f"shape: got {self.shape}; expected {own}")
        if latents is not None and denoiser.shape is not None:
            require(own == denoiser.shape, f"latents: got samples of shape {own}; the denoiser has {denoiser.shape}")
        self.device = next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
        self.labels = self._checked_labels(labels)

    def _checked_labels(self, labels: Tensor | Sequence[int] | int | None) -> Tensor | None:
        if labels is None:
            return None
        require(self.label_dim > 0, "labels: got some for a model without classes; leave them out")
        if isinstance(labels, int):
            labels = torch.full((self.n,), labels)
        return one_hot(labels, self.label_dim, self.n)

    def start(
        self, denoiser: Denoiser, sampler: Sampler, part: slice, sigmas: Tensor, dtype: torch.dtype
    ) -> tuple[Run, Tensor, Tensor | None]:
        """The run of a part of the batch, its scaled latent and its labels. Draws latent and label, in this order."""
        noise = Seeds(self.seeds[part]) if self.seeds is not None else None
        latent = noise.normal(self.shape, torch.float32) if noise else None
        if self.latents is not None:
            latent = self.latents[part]
        labels = self._labels_of(part, noise)
        conditions = {k: self._part_of(v, part) for k, v in self.conditions.items()}
        if labels is not None:
            conditions["labels"] = labels.to(self.device)
        run = Run(denoiser, sampler.schedule, sampler.scaling, noise, conditions, sampler.solver.memory)
        if noise is None and sampler.stochasticity.draws:
            raise ValueError(f"stochasticity {sampler.stochasticity.kind!r} draws noise: give seeds= beside latents=")
        t = run.clock.grid(sigmas)[0]
        if dtype == torch.float64:
            dtype = widest_dtype(self.device)
        x = latent.to(self.device, dtype) * (run.scale(t) * run.sigma(t))  # type: ignore[union-attr]
        return run, x, labels

    def _labels_of(self, part: slice, noise: Seeds | None) -> Tensor | None:
        if not self.label_dim:
            return None
        # drawn also when labels are given, so that the solver's noise is the same either way
        drawn = noise.integers(self.label_dim) if noise else None
        if self.labels is not None:
            return self.labels[part]
        if drawn is None:
            raise ValueError("labels= is needed: the model has classes, and without seeds= none can be drawn")
        return one_hot(drawn, self.label_dim, len(drawn))

    def _part_of(self, value: Any, part: slice) -> Any:
        per_sample = isinstance(value, Tensor) and value.ndim and len(value) == self.n
        return value[part] if per_sample else value


def _wanted(record: bool | Collection[Recordable] | None) -> frozenset[str]:
    wanted = frozenset({"x", "denoised"} if record is True else {record} if isinstance(record, str) else record or ())
    require(wanted <= {"x", "denoised"}, f'record: got {sorted(wanted)}; expected "x", "denoised" or True')
    return wanted


class _Recorder:
    """Collects the States of one batch into a Trajectory."""

    def __init__(self, wanted: frozenset[str], x: Tensor, run: Run, sigmas: Tensor) -> None:
        self.wanted, self.times, self.sigmas = wanted, [run.time(float(sigmas[0]))], sigmas
        self.x, self.denoised, self.sigma_hat = [x], [], []  # type: ignore[var-annotated]

    def add(self, state: State) -> None:
        if not self.wanted:
            return
        self.times.append(state.t)
        self.sigma_hat.append(state.sigma_hat)
        if "x" in self.wanted:
            self.x.append(state.x)
        if "denoised" in self.wanted:
            self.denoised.append(state.denoised)

    def trajectory(self) -> Trajectory | None:
        if not self.wanted:
            return None
        return Trajectory(
            t=torch.tensor(self.times, dtype=torch.float64),
            sigmas=self.sigmas,
            sigma_hat=torch.tensor(self.sigma_hat, dtype=torch.float64),
            x=torch.stack(self.x) if "x" in self.wanted else None,
            denoised=torch.stack(self.denoised) if "denoised" in self.wanted else None,
        )


def _joined(parts: Sequence[Trajectory | None]) -> Trajectory | None:
    first = parts[0]
    if first is None or len(parts) == 1:
        return first
    kept = [p for p in parts if p is not None]
    x = torch.cat([p.x for p in kept if p.x is not None], 1) if first.x is not None else None
    denoised = (
        torch.cat([p.denoised for p in kept if p.denoised is not None], 1) if first.denoised is not None else None
    )
    return Trajectory(first.t, first.sigmas, first.sigma_hat, x, denoised)
