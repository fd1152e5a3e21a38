"""What a solver's steps do wrong: each by itself, and all of them together (EDM paper, Section 3 and appendix D.1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..component import require
from ..denoiser import Denoiser, as_denoiser, evaluation_mode
from ..design import Design
from ..progress import Report, bar
from ..request import Request
from ..sampler import Sampler, sample, sampler_of
from ..solvers import Deterministic, Past, Run
from ..solvers.unipc import PredictorCorrector
from .exact_path import TAIL, Flow, Labels, Model, rms

FEW = range(16)
ABOVE_REFERENCE = 10  # an error nearer to the reference's own says nothing of the order


@dataclass(frozen=True)
class TruncationError:
    """The local errors of N steps between the levels sigmas (N + 1,), in units of the data (x / s).

    error (N,): RMS over samples and dimensions of one step from the exact state, less the exact state at its end.
    standard_error (N,): of `error`, from the differences between samples; 0 for one sample.
    reference_error (N,): how far the exact state at the end is uncertain. nfe (N,): evaluations of each step.
    """

    sampler: Sampler
    sigmas: Tensor
    error: Tensor
    standard_error: Tensor
    reference_error: Tensor
    nfe: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The numbers and the sampler as JSON data."""
        numbers = ("sigmas", "error", "standard_error", "reference_error", "nfe")
        return {"sampler": self.sampler.to_dict()} | {name: getattr(self, name).tolist() for name in numbers}


def truncation_error(
    denoiser: Model,
    sampler: Sampler | Design,
    *,
    seeds: Sequence[int] | None = FEW,
    latents: Tensor | None = None,
    shape: Sequence[int] | None = None,
    labels: Labels = None,
    accuracy: float = 0.01,
    progress: bool = False,
    **conditions: Any,
) -> TruncationError:
    """What every single step of a sampler does wrong, on the exact paths of some seeds (EDM paper, Figure 13).

    Step i starts from the exact state at sigma_i, and its end is compared with the exact state at sigma_{i+1}. A
    multistep solver finds in its past what it would have kept along the exact path: the first steps are those of
    its start. Where a solver corrects its last step with the next evaluation (UniPC), the corrected state counts,
    except for the last step, which stays as predicted. Noise that the sampler adds is left out. The exact path is
    RK4's, each step refined until its own error is estimated at most `accuracy` times what it is to measure.
    Costs about 25 evaluations a step, for all seeds at once.

    Raises ValueError for solvers that draw noise, and as `sample` does.
    """
    denoiser, sampler = as_denoiser(denoiser), _noiseless(sampler_of(sampler))
    require(0 < accuracy < 1, f"accuracy: got {accuracy:g}; expected a number between 0 and 1")
    request = Request(denoiser, None if latents is not None else seeds, latents, shape, labels, conditions)
    sigmas = sampler.sigmas(denoiser)
    with torch.no_grad(), evaluation_mode(denoiser), bar("truncation errors", progress) as report:
        run, x, _ = request.start(denoiser, sampler, slice(0, request.n), sigmas, torch.float64)
        rows = _steps(run, x, sigmas, sampler, accuracy, report)
    error, spread, uncertainty, nfe = (torch.tensor(column) for column in zip(*rows, strict=True))
    return TruncationError(sampler, sigmas, error.double(), spread.double(), uncertainty.double(), nfe)


def _noiseless(sampler: Sampler) -> Sampler:
    require(
        not sampler.solver.draws,
        f"solver {sampler.solver.kind!r} draws noise, so its steps have no exact end; expected a solver of the ODE, "
        "e.g. sampler.replace(solver=ed.solvers.Heun())",
    )
    return sampler.replace(stochasticity=Deterministic())


Row = tuple[float, float, float, int]


def _steps(run: Run, x: Tensor, sigmas: Tensor, sampler: Sampler, accuracy: float, report: Report) -> list[Row]:
    """Error, its standard error, the reference's error and the evaluations of every step."""
    times = run.begin(sigmas, sampler.solver, sampler.stochasticity)
    flow, x_hat, rows = Flow(run.denoiser, run.conditions), x / run.scale(times[0]), []
    for i, (a, b) in enumerate(pairwise(sigmas.tolist())):
        before = run.nfe
        made = _made(run, i, run.scale(times[i]) * x_hat, times, sampler) / run.scale(times[i + 1])
        cost = run.nfe - before

        def wanted(end: Tensor, made: Tensor = made) -> float:
            return accuracy * rms(made - end)

        x_hat, uncertainty = flow.refined(x_hat, a, b, wanted)
        rows.append((*_root_mean_square(made - x_hat), uncertainty, cost))
        report(i + 1, run.steps)
    return rows


def _made(run: Run, i: int, x: Tensor, times: list[float], sampler: Sampler) -> Tensor:
    """What the solver makes of the exact state x in step i, with the exact past behind it."""
    solver, stochasticity = sampler.solver, sampler.stochasticity
    run.past = deque(map(_uncorrected, run.past), run.past.maxlen)
    state = run.advance(i, x, times[i], times[i + 1], solver, stochasticity)
    corrects = isinstance(solver, PredictorCorrector) and solver.corrects and i + 2 < len(times)
    if not corrects:
        return state.x
    exact, nfe = run.past.copy(), run.nfe
    run.advance(i + 1, state.x, times[i + 1], times[i + 2], solver, stochasticity)
    corrected = run.past[-1].kept.get("corrected", state.x)
    run.past, run.nfe = exact, nfe  # the evaluation belongs to the step that follows
    return corrected


def _uncorrected(past: Past) -> Past:
    """A past step without the state it began from: an exact one that follows it needs no correction."""
    return Past(past.t, past.x, past.denoised, {k: v for k, v in past.kept.items() if k != "corrected"})


def _root_mean_square(difference: Tensor) -> tuple[float, float]:
    """The RMS over everything, and its standard error from the mean squares of the samples."""
    squares = difference.double().square().flatten(1).mean(1)
    value = float(squares.mean().sqrt())
    if len(squares) < 2 or value == 0:
        return value, 0.0
    return value, float(squares.std()) / len(squares) ** 0.5 / (2 * value)


@dataclass(frozen=True)
class ErrorCurve:
    """The errors of one sampler over its number of steps, each (M,), and its observed order.

    error: RMS over samples and dimensions of the ends less the exact ends, in units of the data (x / s). order: the
    slope of -ln error over ln steps, where the error is 10 times the reference's; None with fewer than two such. At
    few steps it is above the solver's, and the step to 0, as long at any number of steps, leaves a floor in the end:
    to_zero=False has none.
    """

    name: str
    steps: Tensor
    nfe: Tensor
    error: Tensor
    standard_error: Tensor
    reference_error: Tensor
    order: float | None

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON data."""
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in self.__dict__.items()}


@dataclass(frozen=True)
class GlobalError:
    """One curve a sampler, in the order asked for."""

    curves: tuple[ErrorCurve, ...]

    def to_dict(self) -> dict[str, Any]:
        """The curves as JSON data."""
        return {"curves": [curve.to_dict() for curve in self.curves]}


def global_error(
    denoiser: Model,
    samplers: Mapping[str, Sampler | Design],
    steps: Sequence[int] = (6, 9, 12, 18, 24, 36),
    *,
    seeds: Sequence[int] = FEW,
    shape: Sequence[int] | None = None,
    labels: Labels = None,
    accuracy: float = 0.01,
    progress: bool = False,
    **conditions: Any,
) -> GlobalError:
    """How far the samples of each sampler end from the exact solution for the same noise, by number of steps.

    The exact solution starts where the sampler does, so ranges may differ; it is refined until its own error is
    estimated at most `accuracy` times the smallest that it is to measure. Noise that a sampler adds is left out.
    Costs the evaluations of all samples, and a few hundred to thousands for the solution, for all seeds at once.

    Raises ValueError for solvers that draw noise, for samplers that cannot take so many steps, and as `sample` does.
    """
    denoiser = as_denoiser(denoiser)
    require(len(samplers) > 0, "samplers: got none; expected a name and a sampler each")
    require(len(steps) > 0, "steps: got none; expected some numbers of steps")
    require(0 < accuracy < 1, f"accuracy: got {accuracy:g}; expected a number between 0 and 1")
    chosen = {name: _noiseless(sampler_of(one)) for name, one in samplers.items()}
    request = {"seeds": seeds, "shape": shape, "labels": labels, **conditions}
    asked = Request(denoiser, seeds, None, shape, labels, conditions)
    ends: dict[tuple[str, int], _End] = {}
    with bar("sampling", progress) as report:
        for name, one in chosen.items():
            for n in steps:
                ends[name, n] = _end(denoiser, one.replace(steps=n), request)
                report(len(ends), len(chosen) * len(steps))
    exact = _exact_ends(denoiser, list(ends.values()), asked, accuracy, progress)
    curves = (_curve(name, list(steps), [ends[name, n] for n in steps], exact) for name in chosen)
    return GlobalError(tuple(curves))


Span = tuple[float, float]


@dataclass(frozen=True)
class _End:
    """Unscaled samples (B, *) of one run, from which level to which, the last level above 0, and the evaluations."""

    x: Tensor
    span: Span
    last: float
    nfe: int


def _end(denoiser: Denoiser, sampler: Sampler, request: dict[str, Any]) -> _End:
    result = sample(denoiser, sampler, **request)
    levels = result.sigmas.tolist()
    scale = float(sampler.scaling.s(result.sigmas[-1]))
    return _End(result.x / scale, (levels[0], levels[-1]), min(s for s in levels if s > 0), result.nfe)


def _exact_ends(
    denoiser: Denoiser, ends: list[_End], request: Request, accuracy: float, progress: bool
) -> dict[Span, tuple[Tensor, float]]:
    """The exact ends and their errors, one for each span that occurs."""
    spans, exact = sorted({end.span for end in ends}), {}
    with torch.no_grad(), evaluation_mode(denoiser), bar("exact solution", progress) as report:
        for high, low in spans:
            made = [end for end in ends if end.span == (high, low)]
            levels = torch.tensor([high, low], dtype=torch.float64)
            run, x, _ = request.start(denoiser, Sampler(), slice(0, request.n), levels, torch.float64)
            last = min(end.last for end in made) * TAIL if low == 0 else low

            def wanted(x: Tensor, made: list[_End] = made) -> float:
                return accuracy * min(rms(end.x - x) for end in made)

            flow = Flow(denoiser, run.conditions)
            exact[high, low] = flow.refined(x, high, low, wanted, most=4096, last=last)
            report(len(exact), len(spans))
    return exact


def _curve(name: str, steps: list[int], ends: list[_End], exact: dict[Span, tuple[Tensor, float]]) -> ErrorCurve:
    measured = [_root_mean_square(end.x - exact[end.span][0]) for end in ends]
    error, spread = (torch.tensor(column, dtype=torch.float64) for column in zip(*measured, strict=True))
    reference = torch.tensor([exact[end.span][1] for end in ends], dtype=torch.float64)
    n = torch.tensor(steps)
    order = _order(n, error, reference)
    return ErrorCurve(name, n, torch.tensor([end.nfe for end in ends]), error, spread, reference, order)


def _order(steps: Tensor, error: Tensor, reference: Tensor) -> float | None:
    """The least-squares slope of -ln error over ln steps."""
    clear = (error > ABOVE_REFERENCE * reference) & (error > 0)
    u, v = steps[clear].double().log(), error[clear].log()
    if len(u.unique()) < 2:
        return None
    u = u - u.mean()
    return float(-(u * v).sum() / u.square().sum())
