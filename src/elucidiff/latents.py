"""From data to latents and back: inversion of the ODE, spherical interpolation, editing by partial noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .component import require
from .denoiser import Denoiser, FixedBatch, as_denoiser, evaluation_mode
from .progress import bar
from .request import Request
from .result import Result
from .sampler import Sampler, sample, sampler_of
from .seeds import Seeds
from .solvers import Deterministic, Run, State
from .tensors import like, widest_dtype
from .timesteps import Fixed

if TYPE_CHECKING:
    from .design import Design

ITERATIONS = 4  # of the inverse of the last step; each shrinks the error by |1 - dD/dx|, 0.1 for a trained network


def invert(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Tensor,
    sampler: Sampler | Design,
    *,
    labels: Tensor | Sequence[int] | int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **conditions: Any,
) -> Tensor:
    """The unit-variance latents (B, *) from which `ed.sample(denoiser, sampler, latents=...)` draws x (B, *).

    Integrates Eq. 4 from the sampler's lowest level above 0 up to its highest, with its own schedule, scaling,
    levels and solver (DDIM inversion is the case of Euler; Song, Meng and Ermon 2021). Two errors remain:

    - of the solver, twice, up and down: O(h^order), gone as the steps grow. On trained 8x8 digits, in [-1, 1], 18 steps
      of Heun err by 0.06 at worst, 200 by 3e-5, and 18 of rk4 by 1e-3. With rk45 the tolerance decides instead.
    - of the last step of sampling, from sigma_min to 0, one of Euler whatever the solver: with sigma(t) = t it returns
      D(x_min; sigma_min). The x_min that gives x is sought by x_min <- x_min + x - step(x_min), from x_min = x, as far
      as that brings the step's result nearer to x (4 evaluations). What it starts from, x taken as the state at
      sigma_min, though it carries no noise, errs by D - x = sigma_min^2 times the score: O(sigma_min^2) where p has a
      smooth density, O(sigma_min) where x is as near to the data as noise of that level is. What is left is what no
      state leads to: an x that D never returns, such as one that is not in the data of an exact denoiser, comes back
      as its nearest neighbour.
      With `to_zero=False` there is no such step: x is the (scaled) state at sigma_min that `sample` returns.

    Args:
        denoiser: a Denoiser, or any function (x, sigma, **conditions) -> D.
        x: samples in the units of the data. Converted to float64, as the state is.
        sampler: a Sampler, or a Design, whose sampler is used. Needs 2 levels above 0, and must not draw noise.
        labels: of x, for a class-conditional denoiser: class indices (B,), vectors (B, label_dim), or one class for
            all. Another label when sampling from the latents is an edit of its own.
        batch_size: samples at a time; all at once when None.
        progress: show a progress bar.
        conditions: passed to the denoiser; tensors of B rows are split with the batch.

    Raises:
        ValueError: for a sampler that draws noise, and for x, labels or levels that do not fit, saying what would.
    """
    denoiser, sampler = as_denoiser(denoiser), sampler_of(sampler)
    check_samples(denoiser, x)
    if not sampler.to_zero:
        x = x.to(widest_dtype(x.device)) / float(sampler.scaling.s(sampler.sigmas(denoiser)[-1]))
    ascent = Ascent(denoiser, x, sampler, labels, conditions, batch_size)
    latents = []
    with torch.no_grad(), evaluation_mode(ascent.denoiser), bar("inverting", progress) as report:
        for climb in ascent.climbs():
            for state in climb.states(_before_last_step(climb) if sampler.to_zero else climb.x):
                report(climb.done(state), climb.total(state))
            latents.append(state.x / (climb.run.scale(state.t) * climb.run.sigma(state.t)))
    return torch.cat(latents)


def _before_last_step(climb: Climb) -> Tensor:
    """The scaled state at the lowest level from which the step to 0 leads nearest to x, of fixed-point iterates."""
    run, sampler = climb.run, climb.ascent.sampler
    t, zero = run.clock.grid(torch.cat([climb.ascent.levels[:1], torch.zeros(1, dtype=torch.float64)]))
    s = run.scale(t)
    x_min = nearest = x = climb.x / s
    distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    for _ in range(ITERATIONS):
        missing = x - run.advance(0, s * x_min, t, zero, sampler.solver, sampler.stochasticity).x
        run.past.clear()
        now = missing.flatten(1).norm(dim=1)
        better = now < 0.9 * distance  # not by a rounding, where D says the same wherever it is asked
        nearest, distance = torch.where(like(better, x), x_min, nearest), torch.where(better, now, distance)  # type: ignore[arg-type]
        x_min = x_min + missing
    return s * nearest


def interpolate(a: Tensor, b: Tensor, n: int) -> Tensor:
    """Latents (n, B, *) on the way from a (B, *) to b (B, *), the ends exact; row by row on a great circle.

    With f = 0 .. 1 and the angle omega between a row of a and of b,

        (sin((1 - f) omega) a + sin(f omega) b) / sin omega                   (Shoemake 1985; White 2016)

    Spherical, because the norm of d-dimensional N(0, I) noise hardly varies: sqrt(d) +- 0.7. Half-way on the straight
    line between independent latents it is sqrt(d / 2), which no latent has, and samples from there come out grey and
    smooth; here the path keeps the variance 1, and the norms of a and b go over into each other.

    Raises ValueError for n < 2, shapes that differ, rows of zeros, and opposite rows, between which no path is the
    shortest one.
    """
    require(n >= 2, f"n: got {n}; expected at least 2, the two ends")
    require(a.shape == b.shape and a.ndim >= 2, f"a, b: got {tuple(a.shape)}, {tuple(b.shape)}; expected both (B, *)")
    dtype = torch.promote_types(a.dtype, b.dtype)
    u, v = (side.to(widest_dtype(side.device)).flatten(1) for side in (a, b))
    norms = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    require(bool((norms[0] > 0).all() and (norms[1] > 0).all()), "a, b: got a row of zeros, which has no direction")
    unit = u / norms[0], v / norms[1]
    omega = 2 * torch.atan2((unit[0] - unit[1]).norm(dim=1), (unit[0] + unit[1]).norm(dim=1))[:, None]
    require(bool((omega < 3.1415926).all()), "a, b: got opposite rows; no path between them is the shortest one")
    path = [_on_arc(u, v, omega, i / (n - 1)).reshape(a.shape).to(dtype) for i in range(1, n - 1)]
    return torch.stack([a.to(dtype), *path, b.to(dtype)])


def _on_arc(u: Tensor, v: Tensor, omega: Tensor, f: float) -> Tensor:
    """The point at fraction f of the arc; of the straight line where the angle is too small to divide by its sine."""
    sine = omega.sin()
    tiny = sine < 1e-7
    sine = torch.where(tiny, 1.0, sine)
    w_u = torch.where(tiny, 1 - f, ((1 - f) * omega).sin() / sine)
    w_v = torch.where(tiny, f, (f * omega).sin() / sine)
    return w_u * u + w_v * v


def edit(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Tensor,
    sampler: Sampler | Design,
    sigma: float,
    *,
    seeds: Sequence[int],
    labels: Tensor | Sequence[int] | int | None = None,
    **options: Any,
) -> Result:
    """Variations of x (B, *): noise of level sigma is added and sampling goes on from there (SDEdit, Meng et al. 2022).

    What noise of that level hides is made anew, the rest stays: a small sigma repaints details, at the highest level
    nothing of x is left. The levels are sigma (rounded to one that the denoiser knows) and those of the sampler below
    it, with its schedule, scaling, solver and stochasticity; the result's sampler lists them. Sample k depends on x[k],
    seeds[k] and its label alone: its noise is the latent that `ed.sample` draws from this seed.

    Args:
        denoiser: a Denoiser, or any function (x, sigma, **conditions) -> D.
        x: samples in the units of the data.
        sampler: a Sampler, or a Design, whose sampler is used.
        sigma: how much noise, in units of the data; at most the sampler's highest level. Images in [-1, 1] change in
            their details from 0.2, in their parts from 1, and in what they show from 3 or so.
        seeds: one integer for each row of x.
        labels: what to make of x: class indices (B,) or vectors (B, label_dim), or one class for all. When left out, a
            class-conditional denoiser gets classes drawn from the seeds.
        options: everything else that `ed.sample` takes: batch_size, record, callback, progress, dtype, conditions.

    Raises:
        ValueError: for a sigma outside the sampler's range, and for seeds, x or labels that do not fit.
    """
    denoiser = as_denoiser(denoiser)
    check_samples(denoiser, x)
    require(len(seeds) == len(x), f"seeds: got {len(seeds)} for {len(x)} samples; expected one for each")
    shortened = _from_level(sampler_of(sampler), denoiser, sigma)
    level = shortened.timesteps.range()[1]
    noise = Seeds(seeds).normal(x.shape[1:], torch.float32)
    latents = x.to(widest_dtype(x.device)) / level + noise.to(x.device)  # times s sigma, the state s (x + sigma n)
    return sample(denoiser, shortened, latents=latents, seeds=seeds, labels=labels, **options)


def _from_level(sampler: Sampler, denoiser: Denoiser, sigma: float) -> Sampler:
    """The sampler from level sigma down: sigma itself, then its levels below."""
    levels = sampler.sigmas(denoiser)
    lowest, highest = max(denoiser.sigma_min, 0.0), float(levels[0])
    require(
        lowest <= sigma <= highest and sigma > 0,
        f"sigma: got {sigma:g}; expected a level above {lowest:g} and at most {highest:g}, where the sampler starts",
    )
    first = float(denoiser.round_sigma(torch.tensor(sigma, dtype=torch.float64)))
    require(first > 0, f"sigma: got {sigma:g}, which rounds to 0 here; expected a level that the denoiser knows")
    below = levels[(levels > 0) & (levels < first)].tolist()
    return sampler.replace(timesteps=Fixed(sigmas=(first, *below)), sigma_min=None, sigma_max=None)


class Ascent:
    """Eq. 4 integrated upward from samples x (B, *), checked and in batches: what inversion and likelihood share.

    `levels` (N,) rise from the sampler's lowest above 0, where x is the unscaled state, to its highest.
    Raises ValueError for a sampler that draws noise, and for x, labels or levels that do not fit.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sampler: Sampler | Design,
        labels: Tensor | Sequence[int] | int | None,
        conditions: dict[str, Any],
        batch_size: int | None,
    ) -> None:
        self.sampler = deterministic(sampler_of(sampler))
        check_samples(denoiser, x)
        sigmas = self.sampler.sigmas(denoiser)
        self.levels = sigmas[sigmas > 0].flip(0)
        require(len(self.levels) >= 2, "steps: the way up needs 2 levels above 0 or more; got 1")
        latents = x.to(widest_dtype(x.device)) / float(self.levels[0])  # a run starts from s sigma times these
        self._request = Request(denoiser, None, latents, None, labels, conditions)
        self._parts = list(self._request.parts(1 if self.sampler.solver.adaptive else batch_size))
        pad = len(self._parts) > 1 and not isinstance(denoiser, FixedBatch)
        self.denoiser = FixedBatch(denoiser, self._parts[0].stop) if pad else denoiser

    def climbs(self) -> Iterator[Climb]:
        """The batches, one after the other."""
        for part in self._parts:
            run, x, _ = self._request.start(self.denoiser, self.sampler, part, self.levels, torch.float64)
            yield Climb(self, part, run, x, self._request.n)


class Climb(NamedTuple):
    """One batch on its way up: which rows of the whole, its run, the scaled state x (b, *) at the lowest level."""

    ascent: Ascent
    rows: slice
    run: Run
    x: Tensor
    n: int

    def states(self, x: Tensor) -> Iterator[State]:
        """The state after every step, from x at the lowest level."""
        return self.run.states(x, self.ascent.levels, self.ascent.sampler.solver, Deterministic())

    def done(self, state: State) -> int:
        """For progress: steps of samples, of those of `total`."""
        return self.rows.start * state.steps + (self.rows.stop - self.rows.start) * (state.i + 1)

    def total(self, state: State) -> int:
        """Steps of samples in all."""
        return self.n * state.steps


def deterministic(sampler: Sampler) -> Sampler:
    """The sampler, if it draws no noise. Raises ValueError for one that does, naming what to replace."""
    for element, remedy in ((sampler.solver, "solver=ed.solvers.Heun()"), (sampler.stochasticity, None)):
        remedy = remedy or "stochasticity=ed.solvers.Deterministic()"
        require(
            not element.draws,
            f"{element.role} {element.kind!r} draws noise, which nothing can take back; expected a sampler of the ODE: "
            f"sampler.replace({remedy})",
        )
    return sampler


def check_samples(denoiser: Denoiser, x: Tensor) -> None:
    """Raise ValueError unless x holds finite samples (B, *) of the denoiser's shape."""
    shape = denoiser.shape
    if x.ndim < 2 or not len(x) or (shape is not None and tuple(x.shape[1:]) != shape):
        inner = "*" if shape is None else ", ".join(str(n) for n in shape)
        raise ValueError(f"x: got shape {tuple(x.shape)}; expected samples (B, {inner})")
    require(bool(x.isfinite().all()), "x: got NaN or infinity; expected finite samples")
