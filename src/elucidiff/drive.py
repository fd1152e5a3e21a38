"""A sampler driven from outside, one network call at a time: `drive.call` asks, `drive.answer(D)` goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoiser
from .request import Request
from .result import Part, Recordable, Recorder, Result
from .sampler import Sampler, sampler_of
from .solvers import Run, Solver, State, Stochasticity

if TYPE_CHECKING:
    from .design import Design


class Call(NamedTuple):
    """What the network is asked for: D(x; sigma) of an unscaled x (B, *) at a level sigma, 0-dim float64 on the CPU."""

    x: Tensor
    sigma: Tensor


class Drive:
    """One sampling run whose network lives outside.

        drive = ed.Drive(sampler, seeds=range(4), shape=(3, 32, 32))
        while (call := drive.call) is not None:
            drive.answer(network(call.x, call.sigma))
        images = drive.result.x

    The same bits as `ed.sample`. Solvers stay plain functions: a step runs until it asks for a D that
    is not known yet, and after the answer it is run again from its beginning, with the answers and the noise
    of before. Nothing is committed until a step is complete, and nothing but plain values is held between calls,
    so a drive can be dropped, copied (copy.deepcopy) or pickled at any call. A step of k calls
    runs k + 1 times, arithmetic only: nothing for the usual one to four calls, quadratic for rk45, whose
    steps over the levels of the grid ask 6 or more at some and none at most of many.

    Args:
        sampler: a Sampler, or a Design, whose sampler is used.
        seeds, latents, shape, labels, dtype, record: as for `ed.sample`.
        label_dim: classes of the network; with seeds and without labels they are drawn, see `labels`.
        sigma_min, sigma_max: the levels that the network supports; the sampler's range is narrowed to them.
        round_sigma: maps levels to the nearest that the network knows, e.g. `denoiser.round_sigma` or
            `preconditioning.round_sigma`; kept, and copied with the drive.
        device: of the state; that of the latents, or the CPU.

    Raises:
        ValueError: for seeds, labels, shapes or ranges that do not fit, saying what would.
    """

    def __init__(
        self,
        sampler: Sampler | Design,
        *,
        seeds: Sequence[int] | None = None,
        latents: Tensor | None = None,
        shape: Sequence[int] | None = None,
        labels: Tensor | Sequence[int] | int | None = None,
        label_dim: int = 0,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        round_sigma: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        record: bool | Collection[Recordable] | None = None,
    ) -> None:
        self._sampler = sampler_of(sampler)
        device = device if device is not None else "cpu" if latents is None else latents.device
        self._outside = _Outside(label_dim, sigma_min, sigma_max, round_sigma, device)
        self._request = Request(self._outside, seeds, latents, shape, labels, {})
        self._parts = list(self._request.parts(1 if self._sampler.solver.adaptive else None))
        self._sigmas = self._sampler.sigmas(self._outside)
        self._dtype, self._record = dtype, record
        self._done: list[_Part] = []
        self._state: State | None = None
        self._call: Call | None = None
        self._read = False  # whether the pending call was looked at: an answer to a call never seen is a mistake
        self._seconds = 0.0
        with torch.no_grad():
            self._part = self._begun(self._parts[0])
            self._proceed()

    @property
    def call(self) -> Call | None:
        """The pending call; None when the run is finished. An adaptive solver asks for one sample after the other."""
        self._read = True
        return self._call

    @property
    def rows(self) -> slice:
        """Which samples of the batch the pending call is about: all, but for adaptive solvers."""
        return self._part.rows

    @property
    def labels(self) -> Tensor | None:
        """Labels (B, label_dim) that go with the pending call; None for a network without classes."""
        return self._part.labels

    @property
    def done(self) -> bool:
        """Whether every step is taken."""
        return self._call is None

    @property
    def state(self) -> State | None:
        """The State after the last complete step; None before the first."""
        return self._state

    @property
    def x(self) -> Tensor:
        """The samples (B, *) of `rows` after the last complete step, scaled by s; all samples when done."""
        return torch.cat([part.x for part in self._done]) if self.done else self._part.x

    @property
    def result(self) -> Result:
        """What `ed.sample` returns, its seconds without the network's. Raises RuntimeError before the run is done."""
        if not self.done:
            part = self._part
            raise RuntimeError(f"drive.result: the run has done {part.i} of {part.run.steps} steps; answer its calls")
        parts = [Part(part.x, part.labels, part.run.nfe, part.recorder.trajectory()) for part in self._done]
        return Result.of_parts(
            parts, seconds=self._seconds, seeds=self._request.seeds, sampler=self._sampler, sigmas=self._sigmas
        )

    def answer(self, denoised: Tensor) -> None:
        """Give D for the pending call and go on to the next one.

        Raises RuntimeError when nothing is pending: the run is done, or `call` was not read since the last answer.
        Raises ValueError for a D that is not shaped as the x of the call. After an error the call is still pending.
        """
        if self._call is None:
            raise RuntimeError("drive.answer: the run is done, nothing was asked; see drive.result")
        if not self._read:
            raise RuntimeError("drive.answer: answered already; read drive.call for what is asked next")
        expected = tuple(self._call.x.shape)
        if not isinstance(denoised, Tensor):
            raise TypeError(f"drive.answer: got {type(denoised).__name__}; expected a tensor {expected}")
        if tuple(denoised.shape) != expected:
            raise ValueError(f"drive.answer: got D of shape {tuple(denoised.shape)}; expected {expected}")
        answers = self._outside.answers
        answers.append(denoised.detach())
        try:
            with torch.no_grad():
                self._proceed()
        except BaseException:
            answers.pop()
            raise

    def _begun(self, rows: slice) -> _Part:
        run, x, labels = self._request.start(self._outside, self._sampler, rows, self._sigmas, self._dtype, _Replayed)
        times = run.begin(self._sigmas, self._sampler.solver, self._sampler.stochasticity)
        recorder = Recorder(self._record, self._sigmas)
        recorder.start(x, times[0])
        return _Part(rows, run, x, labels, times, recorder)

    def _proceed(self) -> None:
        """Steps until one asks for a D that is not known, or to the end."""
        started = time.perf_counter()
        self._call = self._to_next_call()
        self._read = False
        self._seconds += time.perf_counter() - started

    def _to_next_call(self) -> Call | None:
        while True:
            part = self._part
            if part.i < part.run.steps:
                try:
                    self._state = part.step(self._sampler.solver, self._sampler.stochasticity)
                except _Suspended as suspended:
                    return suspended.call
            else:
                self._done.append(part)
                if len(self._done) == len(self._parts):
                    return None
                self._part = self._begun(self._parts[len(self._done)])


class _Suspended(Exception):
    """A step asked for a D that is not known yet."""

    def __init__(self, call: Call) -> None:
        super().__init__("waiting for drive.answer")
        self.call = call


class _Outside(Denoiser):
    """Stands in for the network: gives the step's answers once more, in order, and suspends it at the first unknown."""

    def __init__(
        self,
        label_dim: int,
        sigma_min: float,
        sigma_max: float,
        rounding: Callable[[Tensor], Tensor] | None,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.label_dim, self.sigma_min, self.sigma_max, self.rounding = label_dim, sigma_min, sigma_max, rounding
        self.answers: list[Tensor] = []
        self.given = 0
        self.register_buffer("place", torch.empty(0, device=device))  # runs follow the device of their denoiser

    def denoise(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        """The next answer."""
        if self.given == len(self.answers):
            raise _Suspended(Call(x, sigma))
        self.given += 1
        return self.answers[self.given - 1]

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """By the function given."""
        return sigma if self.rounding is None else self.rounding(sigma)


class _Replayed(Run):
    """A run whose steps may be repeated: the noise of the step under way is drawn once and given again."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.draws: list[Tensor] = []
        self.drawn = 0
        self.drawing = False
        self.nfe_before = 0

    def attempt(
        self, i: int, x: Tensor, t: float, t_next: float, solver: Solver, stochasticity: Stochasticity
    ) -> State:
        """Step i from its beginning, with what is known; raises _Suspended where an answer is missing."""
        outside: _Outside = self.denoiser  # type: ignore[assignment]
        outside.given, self.drawn, self.nfe = 0, 0, self.nfe_before
        state = self.advance(i, x, t, t_next, solver, stochasticity)
        outside.answers, self.draws, self.nfe_before = [], [], self.nfe
        return state

    def fresh_noise(self, x: Tensor) -> Tensor:
        """The step's next draw, the same in every attempt."""
        return self._once(super().fresh_noise, x)

    def noise_between(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The same for the increments of a Brownian path."""
        return self._once(super().noise_between, x, sigma, sigma_next)

    def _once(self, draw: Callable[..., Tensor], *args: Any) -> Tensor:
        if self.drawing:  # an increment that draws fresh numbers: one entry for both
            return draw(*args)
        if self.drawn == len(self.draws):
            self.drawing = True
            try:
                self.draws.append(draw(*args))
            finally:
                self.drawing = False
        self.drawn += 1
        return self.draws[self.drawn - 1]


class _Part:
    """The samples that run together: where they stand."""

    def __init__(
        self, rows: slice, run: Run, x: Tensor, labels: Tensor | None, times: list[float], recorder: Recorder
    ) -> None:
        self.rows, self.x, self.labels, self.times, self.recorder = rows, x, labels, times, recorder
        self.run: _Replayed = run  # type: ignore[assignment]
        self.i = 0

    def step(self, solver: Solver, stochasticity: Stochasticity) -> State:
        """Take the next step, or suspend and change nothing."""
        t, t_next = self.times[self.i : self.i + 2]
        state = self.run.attempt(self.i, self.x, t, t_next, solver, stochasticity)
        self.x, self.i = state.x, self.i + 1
        self.recorder.add(state)
        return state
