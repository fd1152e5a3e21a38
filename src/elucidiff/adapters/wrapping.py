"""Any foreign network as a denoiser: what it predicts and what it is told decide the exact conversion to D."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..component import require
from ..denoiser import Denoiser, one_hot
from ..errors import unknown
from ..formulation import EDM, SDE, VP, Flow, FlowScaling, Scaling, Schedule, Table, Unscaled, VariancePreserving
from ..preconditioning import V
from ..tensors import like

Prediction = Literal["epsilon", "v", "x0", "score", "scaled_score", "flow", "edm"]
Time = Literal["continuous", "index", "interpolated"]


def wrap(
    fn: Callable[..., Tensor],
    prediction: Prediction = "epsilon",
    schedule: Schedule | None = None,
    scaling: Scaling | None = None,
    *,
    time: Time | Callable[[Tensor], Tensor] | None = None,
    time_scale: float = 1.0,
    shape: Sequence[int] | None = None,
    label_dim: int = 0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Denoiser:
    """The denoiser of a foreign network, called as fn(x_t, t, **conditions) at x_t = s(sigma) x and the time of sigma.

    With x_t = s x, alpha = 1 / sqrt(1 + sigma^2) and the output F, whatever the scaling is:

        epsilon       D = x - sigma F                          F predicts the unit noise n in x = x_0 + sigma n
        v             D = alpha^2 x - alpha sigma F            F predicts alpha n - alpha sigma x_0
        x0            D = F
        score         D = x + sigma^2 F                        F = grad log p(x; sigma)
        scaled_score  D = x + s sigma^2 F                      F = grad log p_t(x_t), the score in x_t itself
        flow          D = (x - sigma F) / (1 + sigma)          F predicts the velocity n - x_0
        edm           D = F                                    fn is a denoiser already

    Args:
        fn: a function or module; x_t is (B, *) in the dtype of its first parameter (of the state, if it has none),
            t (B,) float or, for `time="index"`, int64. Conditions given to the denoiser arrive by name.
        prediction: what fn returns.
        schedule: whose time fn is told; sigma(t) = t when left out, t / (1 - t) for "flow". A discrete DDPM
            model has `ed.formulation.Table(alpha_bar)`, a VP one `ed.formulation.VP()`.
        scaling: s; when left out that of the schedule: variance-preserving for VP, Cosine and Table, 1 - t for
            Flow, its own for SDE, else none.
        time: "continuous": time_scale times the schedule's t, the default but for a Table; "index": the number of the
            Table's nearest entry, counted from 0, and `round_sigma` gives its level, the default for a Table;
            "interpolated": numbers between the entries too, for networks that accept floats; or a function of sigma.
        time_scale: what the schedule's t is multiplied by, for "continuous".
        shape: of one sample.
        label_dim: number of classes; fn then gets labels= (B, label_dim), zeros for none.
        sigma_min: the lowest level that fn knows; that of the schedule, where it says.
        sigma_max: the highest.

    Raises ValueError for an unknown prediction, and for a time that does not go with the schedule.
    """
    require(prediction in get_args(Prediction), unknown("prediction", prediction, get_args(Prediction)))
    if not callable(fn):
        raise TypeError(f"fn: got {type(fn).__name__}; expected a function or module (x, t, **conditions)")
    schedule = schedule or (Flow() if prediction == "flow" else EDM())
    listed = isinstance(schedule, Table)
    time = time or ("index" if listed else "continuous")
    if not callable(time):
        require(time in get_args(Time), unknown("time", time, get_args(Time)) + " or a function of sigma")
        need = f"time={time!r} needs a schedule with entries, ed.formulation.Table(alpha_bar); got {schedule.kind!r}"
        require(listed or time == "continuous", need)
    low, high = _range(schedule)
    return Wrapped(
        fn,
        prediction,
        schedule,
        scaling or scaling_of(schedule),
        time,
        time_scale,
        shape=shape,
        label_dim=label_dim,
        sigma_min=low if sigma_min is None else sigma_min,
        sigma_max=high if sigma_max is None else sigma_max,
    )


class Wrapped(Denoiser):
    """What `wrap` returns: D of a foreign network; computed in float32 or wider, coefficients in float64."""

    def __init__(
        self,
        fn: Callable[..., Tensor],
        prediction: Prediction,
        schedule: Schedule,
        scaling: Scaling,
        time: Time | Callable[[Tensor], Tensor],
        time_scale: float,
        *,
        shape: Sequence[int] | None,
        label_dim: int,
        sigma_min: float,
        sigma_max: float,
    ) -> None:
        super().__init__()
        require(
            0 <= sigma_min < sigma_max, f"got sigma_min={sigma_min}, sigma_max={sigma_max}; expected 0 <= min < max"
        )
        require(0 < time_scale < math.inf, f"time_scale: got {time_scale}; expected a number above 0")
        require(label_dim >= 0, f"label_dim: got {label_dim}; expected 0 (unconditional) or the number of classes")
        self.fn, self.prediction, self.schedule, self.scaling = fn, prediction, schedule, scaling
        self.time, self.time_scale, self.label_dim = time, time_scale, label_dim
        self.shape = tuple(shape) if shape is not None else None
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        # the entries of a Table and their numbers, written once
        self._entries = V(schedule=schedule, time_scale=1, time_shift=-1, discrete=True) if time == "index" else None

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, **conditions: Any) -> Tensor:
        """D of the network's output. Raises ValueError for an output that is not shaped as x."""
        own = self._dtype(x)
        x = x.to(torch.promote_types(x.dtype if own is None else own, torch.float32))
        network_dtype = x.dtype if own is None else own
        sigma = sigma.double()
        if self.label_dim:
            conditions["labels"] = one_hot(labels, self.label_dim, len(x)).to(x.device, network_dtype)
        elif labels is not None:
            raise ValueError("labels: got some for a model without classes; give wrap(label_dim=) or leave them out")
        skip, out, s = (_placed(c, x) for c in self._coefficients(sigma))
        F = self.fn((s * x).to(network_dtype), self.told(sigma, x), **conditions)
        if not isinstance(F, Tensor):
            raise TypeError(f"fn returned {type(F).__name__}; expected a tensor {tuple(x.shape)}: take it out in fn")
        require(
            F.shape == x.shape,
            f"fn returned {tuple(F.shape)} for x {tuple(x.shape)}; expected the same shape (of an output with a "
            "predicted variance, return the first half of the channels)",
        )
        return skip * x + out * F.to(x.dtype)

    def _dtype(self, x: Tensor) -> torch.dtype | None:
        parameters = self.fn.parameters() if isinstance(self.fn, nn.Module) else iter(())
        return next((p.dtype for p in parameters), None)

    def _coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, s): D = c_skip x + c_out F(s x)."""
        one, s = torch.ones_like(sigma), self.scaling.s(sigma)
        alpha = (1 + sigma**2).rsqrt()
        skip, out = {
            "epsilon": (one, -sigma),
            "v": (alpha**2, -alpha * sigma),
            "x0": (0 * one, one),
            "score": (one, sigma**2),
            "scaled_score": (one, s * sigma**2),
            "flow": (1 / (1 + sigma), -sigma / (1 + sigma)),
            "edm": (0 * one, one),
        }[self.prediction]
        return skip, out, s

    def told(self, sigma: Tensor, x: Tensor) -> Tensor:
        """The time (B,) that fn gets at levels sigma () or (B,), on the device of x."""
        if callable(self.time):
            t = self.time(sigma)
        elif self._entries is not None:
            t = self._entries.coefficients(sigma)[3].round().long()
        elif self.time == "interpolated":
            t = (self.schedule.sigma_inv(sigma) - 1).clamp(min=0)
        else:
            t = self.time_scale * self.schedule.sigma_inv(sigma)
        t = t if t.dtype == torch.int64 else t.to(x.dtype)
        return t.to(x.device).expand(len(x))

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest entry of the table for a network that is told its number; else the level itself."""
        return sigma if self._entries is None else self._entries.round_sigma(sigma)


def scaling_of(schedule: Schedule) -> Scaling:
    """The scaling that belongs to a schedule by its origin; none for sigma(t) = t, VE and schedules of one's own."""
    if isinstance(schedule, SDE):
        return schedule.scaling()
    if isinstance(schedule, Flow):
        return FlowScaling()
    return VariancePreserving() if schedule.kind in ("vp", "cosine", "table") else Unscaled()


def _range(schedule: Schedule) -> tuple[float, float]:
    if isinstance(schedule, Table):
        levels = schedule.levels()
        return levels[0].item(), levels[-1].item()
    if isinstance(schedule, VP):  # trained for t in [1e-5, 1], as preconditioning.VP
        return float(schedule.sigma(1e-5)), float(schedule.sigma(1.0))  # type: ignore[arg-type]
    return 0.0, math.inf


def _placed(coefficient: Tensor, x: Tensor) -> Any:
    return like(coefficient.to(x.dtype) if coefficient.ndim == 0 else coefficient.to(x.device, x.dtype), x)
