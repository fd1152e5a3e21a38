"""Our samplers as a scheduler of diffusers: any unchanged pipeline runs them, one network call at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...component import require
from ...denoiser import Denoiser
from ...drive import Drive
from ...errors import MissingExtraError
from ...formulation import Schedule
from ...preconditioning import Flow, Preconditioning
from ...sampler import Sampler
from ...seeds import MAX_SEED
from ...tensors import like, widest_dtype
from ...timesteps import Fixed
from ..k_diffusion import _own_seed
from .schedules import Levels, family_of, preconditioning_of

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
except ImportError:
    raise MissingExtraError("diffusers", "diffusers") from None

GeneratorOrList = torch.Generator | Sequence[torch.Generator] | None


class _Plan(NamedTuple):
    """The network calls of a run: the level of each, and the step it belongs to."""

    sampler: Sampler
    sigmas: list[float]
    steps: list[int]

    def begins(self, i: int) -> bool:
        """Whether call i is the first of its step."""
        return i == 0 or self.steps[i] != self.steps[i - 1]


class ElucidiffScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # the library's classes are untyped
    """A sampler of ours in a pipeline of diffusers.

        pipe.scheduler = ElucidiffScheduler.from_config(pipe.scheduler.config, sampler=ed.EDM)

    `timesteps` has one entry for each network call: N for Euler and the multistep solvers, 2N - 1 for Heun, where N is
    num_inference_steps, the noise levels above 0 (the sampler's own number when None). What passes between calls is the
    next input of the network, s(sigma) x, so that pipelines that never scale it work too; the state itself is
    kept here in float64. The numbers are those of `ed.sample` for the same network, noise and seeds.

    The pipeline's first noise is that of the first call: x = sigma z there. Pipelines that call `scale_model_input`
    feed the network exactly s sigma z; to others' networks goes z itself, larger by 1 / (2 sigma^2) for DDPM-like
    models and by 1 / sigma for flow models: give the latter a high sigma_max.

    Noise of stochastic samplers: from one seed for each sample. Seeds are drawn from the pipeline's `generator`;
    without one they are made from the first noise itself. The global random state is neither read nor changed.

    `set_timesteps` forgets whatever ran before. Samples must come back as they were returned: a pipeline that changes
    them between steps (masked inpainting) is refused with a ValueError.

    Args:
        num_train_timesteps ... rescale_betas_zero_snr: of the network, as other schedulers have them.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow_prediction".
        levels: "rounded" to the trained timesteps, or "interpolated" between them.
        time_scale: of a flow model, num_train_timesteps when None.
        sampler: an ed.Sampler or ed.Design, or its JSON data; EDM's deterministic sampler when None. Adaptive solvers
            are refused: they do not know their calls beforehand.
        preconditioning: one of ours, or its JSON data, in place of all that describes the network.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        levels: Levels = "rounded",
        time_scale: float | None = None,
        sampler: Any = None,
        preconditioning: Any = None,
    ) -> None:
        self._sampler = _sampler(sampler)
        if preconditioning is None:
            made = preconditioning_of(dict(self.config), levels=levels, time_scale=time_scale)
        else:
            given = isinstance(preconditioning, Mapping)
            made = Preconditioning.from_dict(preconditioning) if given else preconditioning
        self.preconditioning = made
        self.register_to_config(
            sampler=self._sampler.to_dict(), preconditioning=None if preconditioning is None else made.to_dict()
        )
        self.init_noise_sigma = 1.0
        self.set_timesteps()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler for the network that another scheduler's config describes; sampler= and all others replace."""
        family = family_of(config) if isinstance(config, Mapping) else "unknown"
        if family == "flow":
            kwargs.setdefault("prediction_type", "flow_prediction")
        elif family == "edm" and "preconditioning" not in kwargs:
            kwargs["preconditioning"] = preconditioning_of(config)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """Plan a run of N noise levels and forget the last one. Raises ValueError where the sampler cannot have N."""
        sampler = self._sampler
        if num_inference_steps is not None and num_inference_steps != sampler.steps:
            sampler = sampler.replace(steps=int(num_inference_steps))
        self._plan = _planned(sampler, self.preconditioning)
        self.num_inference_steps = sampler.steps
        self.order = -(-len(self._plan.sigmas) // max(self._plan.steps[-1] + 1, 1))
        levels = torch.tensor(self._plan.sigmas, dtype=torch.float64)
        self.sigmas = torch.cat([levels, levels.new_zeros(1)]).float()
        *coefficients, told = self.preconditioning.coefficients(levels)
        self._coefficients = list(
            zip(*(c.tolist() for c in coefficients), strict=True)
        )  # c_skip, c_out, c_in of a call
        self.timesteps = (told.long() if bool((told == told.round()).all()) else told.float()).to(device)
        self._drive: Drive | None = None
        self._next = self._begin = 0
        self._given: Tensor | None = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a later entry of `timesteps`, as image-to-image pipelines do."""
        self._next = self._begin = begin_index

    @property
    def begin_index(self) -> int:
        """The entry of `timesteps` that the run began with."""
        return self._begin

    @property
    def step_index(self) -> int | None:
        """The entry of `timesteps` that the next `step` answers; None before the first."""
        return None if self._drive is None else self._next

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input: s sigma z for the first noise z; everything after is scaled already."""
        if self._drive is not None or self._begin:
            return sample
        return sample * (self._coefficients[0][2] * self._plan.sigmas[0])

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: GeneratorOrList = None,
        return_dict: bool = True,
        **ignored: Any,
    ) -> Any:
        """Answer the call at `timestep`; `prev_sample` is the network's next input, in the end the sample.

        Raises ValueError for a timestep out of turn, a sample that was changed, and an output of another shape;
        RuntimeError after the last step.
        """
        if self._next >= len(self._plan.sigmas):
            raise RuntimeError("step: the run is done; call set_timesteps before another")
        if self._drive is None:
            self._start(timestep, sample, generator)
        drive = self._drive
        call = drive.call if drive is not None else None
        if drive is None or call is None:  # cannot be: `_next` counts the same calls
            raise RuntimeError("step: the run is done; call set_timesteps before another")
        self._check(timestep, sample, float(call.sigma))
        drive.answer(self._denoised(model_output, call.x))
        self._next += 1
        following = drive.call
        if following is None:
            self._given = drive.result.x.to(sample.dtype)
        else:
            self._given = (following.x * self._coefficients[self._next][2]).to(sample.dtype)
        return SchedulerOutput(prev_sample=self._given) if return_dict else (self._given,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The state s (x_0 + sigma n) at timesteps (B,) or (1,): of this run, or any the network was trained at."""
        sigma = torch.stack([self._level(t) for t in timesteps.reshape(-1)])
        s = self.preconditioning.coefficients(sigma)[2]
        s, sigma = (v.to(original_samples.device, original_samples.dtype) for v in (s, sigma))
        return like(s, original_samples) * (original_samples + like(sigma, original_samples) * noise)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name and order of arguments that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def _entries(self, t: Tensor) -> list[int]:
        """Where a timestep stands in this run's list."""
        return (self.timesteps.cpu() == t.cpu()).nonzero().reshape(-1).tolist()

    def _level(self, t: Tensor) -> Tensor:
        """The noise level that a timestep tells the network."""
        if found := self._entries(t):
            return torch.tensor(self._plan.sigmas[found[0]], dtype=torch.float64)
        made = self.preconditioning
        schedule = getattr(made, "schedule", None)
        if isinstance(made, Flow):
            u = t.double().cpu() / made.time_scale
            return u / (1 - u)
        if not isinstance(schedule, Schedule) or not hasattr(made, "time_shift"):
            raise ValueError(f"timestep {float(t):g}: not one of this run's ({made.kind} preconditioning)")
        return schedule.sigma((t.double().cpu() - made.time_shift) / made.time_scale)  # type: ignore[attr-defined]

    def _start(self, timestep: Any, sample: Tensor, generator: GeneratorOrList) -> None:
        found = self._entries(torch.as_tensor(timestep))
        if not self._begin and found:  # a pipeline may skip steps without saying so
            self._begin = self._next = found[0]
        i, plan = self._begin, self._plan
        sigma = plan.sigmas[i]
        sampler = plan.sampler if i == 0 else _rest(plan, i, self.preconditioning)
        x = sample.to(widest_dtype(sample.device)) * (sigma if i == 0 else 1 / self._coefficients[i][2])
        draws = sampler.solver.draws or sampler.stochasticity.draws
        self._drive = _drive_from(x, sampler, self.preconditioning, _seeds(sample, generator) if draws else None)
        self._given = sample

    def _check(self, timestep: Any, sample: Tensor, sigma: float) -> None:
        due = self.timesteps[self._next]
        told = torch.as_tensor(timestep).to(due.device)
        require(bool(told == due), f"step: got timestep {told.item():g}; entry {self._next} is {due.item():g}")
        planned = self._plan.sigmas[self._next]
        require(
            abs(sigma - planned) <= 1e-9 * planned,
            f"step: this sampler's churn depends on its number of steps: it cannot begin at entry {self._begin}; use "
            "one without stochasticity for image-to-image",
        )
        same = self._given is not None and torch.equal(sample.nan_to_num(), self._given.to(sample.device).nan_to_num())
        require(
            same,
            "step: the sample is not the one that the last step returned. This scheduler keeps the state itself; "
            "pipelines that change it between steps (masked inpainting) need a scheduler of diffusers",
        )

    def _denoised(self, model_output: Tensor, x: Tensor) -> Tensor:
        """D of the network's output at the unscaled x of the pending call."""
        F = model_output
        if F.ndim > 1 and F.shape[1] == 2 * x.shape[1]:  # the second half is a predicted variance
            F = F[:, : x.shape[1]]
        require(F.shape == x.shape, f"step: got an output {tuple(F.shape)} for samples {tuple(x.shape)}")
        c_skip, c_out, _ = self._coefficients[self._next]
        return c_skip * x + c_out * F.to(x.dtype)


def _sampler(choice: Any) -> Sampler:
    """The sampler of a Sampler, a Design or their JSON data. Raises ValueError for one that a scheduler cannot be."""
    if isinstance(choice, Mapping):
        choice = Sampler.from_dict(choice.get("sampler", choice))
    sampler = getattr(choice, "sampler", choice) if choice is not None else Sampler()
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler: got {choice!r}; expected an ed.Sampler, an ed.Design or JSON data of one")
    require(
        not sampler.solver.adaptive,
        f"sampler: {sampler.solver.kind!r} chooses its steps as it goes; a pipeline of diffusers wants them "
        "beforehand, e.g. solver=ed.solvers.Heun()",
    )
    require(sampler.to_zero, "sampler: to_zero=False leaves noise in the samples, which no pipeline expects")
    return sampler


class _Network(Denoiser):
    """Stands for the pipeline's network: which levels it knows."""

    def __init__(self, made: Preconditioning) -> None:
        super().__init__()
        self.made, self.sigma_min, self.sigma_max = made, made.sigma_min, made.sigma_max

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest level that the network was trained at."""
        return self.made.round_sigma(sigma)


def _drive(sampler: Sampler, made: Preconditioning, latents: Tensor, seeds: Sequence[int] | None) -> Drive:
    return Drive(
        sampler,
        latents=latents,
        seeds=seeds,
        sigma_min=made.sigma_min,
        sigma_max=made.sigma_max,
        round_sigma=made.round_sigma,
    )


def _planned(sampler: Sampler, made: Preconditioning) -> _Plan:
    """The calls of a run, by answering one on a single number: levels do not depend on the state."""
    drive = _drive(sampler, made, torch.zeros(1, 1), [0])
    sigmas, steps = [], []
    while (call := drive.call) is not None:
        sigmas.append(float(call.sigma))
        steps.append(0 if drive.state is None else drive.state.i + 1)
        drive.answer(torch.zeros_like(call.x))
    return _Plan(sampler, sigmas, steps)


def _rest(plan: _Plan, i: int, made: Preconditioning) -> Sampler:
    """The sampler from call i on. Raises ValueError inside a step."""
    require(plan.begins(i), f"step: entry {i} of timesteps is in the middle of a step; begin at a multiple of `order`")
    levels = plan.sampler.sigmas(_Network(made))[plan.steps[i] : -1]
    return plan.sampler.replace(timesteps=Fixed(sigmas=tuple(levels.tolist())), sigma_min=None, sigma_max=None)


def _drive_from(x: Tensor, sampler: Sampler, made: Preconditioning, seeds: Sequence[int] | None) -> Drive:
    """A drive whose first call is at x (B, *), unscaled, also where the sampler adds noise before it."""
    first = float(sampler.sigmas(_Network(made))[0])
    drive = _drive(sampler, made, x / first, seeds)
    added = (drive.call.x if drive.call is not None else x) - x
    if float(added.abs().max()) <= 1e-9 * first:  # rounding
        return drive
    return _drive(sampler, made, (x - added) / first, seeds)


def _seeds(sample: Tensor, generator: GeneratorOrList) -> list[int]:
    """A seed for each sample: from the generator or generators, else from the sample's own numbers."""
    if generator is None:
        return [_own_seed(row) for row in sample]
    if isinstance(generator, torch.Generator):
        generators, n = [generator], len(sample)
    else:
        generators, n = list(generator), 1
    drawn = [torch.randint(MAX_SEED, (n,), generator=g, device=g.device).tolist() for g in generators]
    seeds = [seed for part in drawn for seed in part]
    require(len(seeds) == len(sample), f"generator: got {len(seeds)} for {len(sample)} samples")
    return seeds
