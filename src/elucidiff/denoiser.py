"""The interface where everything meets: D(x; sigma), from networks and from exact formulas."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .conditioning import Conditioning, checked_condition
from .networks import Network
from .preconditioning import Preconditioning
from .tensors import as_float64, like


class Denoiser(nn.Module):
    """D(x; sigma): the expected clean sample given x = y + sigma n (EDM paper, Eq. 2 and 3).

    Subclasses define `denoise`; `forward` checks sigma and makes D(x; 0) = x exact. Attributes:
    `shape` of one sample (None: any), `label_dim` (0: unconditional), `sigma_min` and `sigma_max`,
    the levels it supports; `vector_labels`, whether labels are vectors of which none can be drawn as a class is;
    `conditioning`, which image it is called with as `condition` (None: without).
    """

    shape: tuple[int, ...] | None = None
    label_dim: int = 0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    vector_labels: bool = False
    conditioning: Conditioning | None = None

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Any) -> Tensor:
        """D, shaped as x (B, *). sigma is () or (B,), in units of the data.

        Raises ValueError for a negative, NaN or infinite sigma and for a sigma of another shape.
        """
        sigma = as_float64(sigma)
        if sigma.ndim == 0:
            level = float(sigma)
            if not 0 <= level < math.inf:
                raise ValueError(f"sigma: got {level}; expected a finite number of at least 0")
            return x.clone() if level == 0 else self.denoise(x, sigma, **conditions)
        if sigma.shape != x.shape[:1]:
            raise ValueError(
                f"sigma: got shape {tuple(sigma.shape)} for x {tuple(x.shape)}; expected () or ({len(x)},)"
            )
        if not ((sigma >= 0) & sigma.isfinite()).all():
            raise ValueError("sigma: got a negative, NaN or infinite level; expected finite numbers of at least 0")
        clean = sigma == 0
        if not clean.any():
            return self.denoise(x, sigma, **conditions)
        D = self.denoise(x, torch.where(clean, 1.0, sigma), **conditions)
        exact = clean.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(exact, x, D)  # in the wider of the two dtypes, so that x keeps its digits

    def denoise(self, x: Tensor, sigma: Tensor, *args: Any, **conditions: Any) -> Tensor:
        """D for checked levels above 0, () or (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define denoise(x, sigma, **conditions)")

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest level the denoiser was trained at (itself, unless its levels are discrete)."""
        return sigma

    def finish(self, x: Tensor, **conditions: Any) -> Tensor:
        """A sample (B, *) after the last step to sigma = 0; changed only where it must meet a constraint exactly."""
        return x

    def decode(self, x: Tensor) -> Tensor:
        """What samples (B, *) show: pictures for a latent model with its autoencoder, else the samples themselves."""
        return x


class FunctionDenoiser(Denoiser):
    """Any function (x, sigma, **conditions) -> D as a denoiser."""

    def __init__(self, function: Callable[..., Tensor], shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.function = function
        self.shape = tuple(shape) if shape is not None else None

    def denoise(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        return self.function(x, sigma, **conditions)


class Preconditioned(Denoiser):
    """A network and its preconditioning: D = c_skip x + c_out F(c_in x; c_noise), Eq. 7.

    `network` is a module called as network(x, c_noise, labels=None, ...) -> F, or a configuration
    (ed.networks.DDPMPP(...)) from which one is built: only the latter can be saved. It runs in its own
    dtype; coefficients are computed in float64; D is float32 or wider. `labels` are class indices (B,)
    or vectors (B, label_dim), with `vector_labels` only these; other conditions go to the network by name.

    With a `conditioning` D is called with `condition`, an image c (B, K, *size) as the network sees it, or in any form
    that `conditioning.prepare` takes. The network is built for C + K channels and fed cat([c_in x, c]); of its output
    the first C channels are F, the last K are dropped. So every network can be conditioned as it is, for the weights
    and the time of K channels more in its first and last layer (lowres on DDPMPP's default for 8x8 digits: 0.1 % more
    weights).
    """

    def __init__(
        self,
        network: nn.Module | Network,
        preconditioning: Preconditioning,
        *,
        shape: Sequence[int],
        label_dim: int = 0,
        vector_labels: bool = False,
        conditioning: Conditioning | None = None,
    ) -> None:
        super().__init__()
        self.network_config = network if isinstance(network, Network) else None
        seen = _shape_seen(tuple(shape), conditioning)
        self.network = network.build(seen, label_dim) if isinstance(network, Network) else network
        self.info: dict[str, Any] = {}  # what model.json says about training and data
        self.preconditioning = preconditioning
        self.shape = tuple(shape)
        self.label_dim = label_dim
        self.vector_labels = vector_labels
        self.conditioning = conditioning
        self.sigma_min, self.sigma_max = preconditioning.sigma_min, preconditioning.sigma_max

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        condition: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        dtype = next((p.dtype for p in self.network.parameters()), torch.float32)
        x = x.to(torch.promote_types(dtype, torch.float32))
        c_skip, c_out, c_in, c_noise = self._coefficients(sigma, x)
        extra = {} if augment_labels is None else {"augment_labels": augment_labels.to(x.device, dtype)}
        if self.label_dim:
            extra["labels"] = one_hot(labels, self.label_dim, len(x)).to(x.device, dtype)
        elif labels is not None:
            raise ValueError("labels: got some for a model without classes; leave them out")
        seen = self._with_condition((c_in * x).to(dtype), condition)
        F = self.network(seen, c_noise, **extra, **conditions)
        if self.conditioning is not None:
            F = F[:, : x.shape[1]]
        return c_skip * x + c_out * F.to(x.dtype)

    def _with_condition(self, x: Tensor, given: Tensor | None) -> Tensor:
        """What the network is fed: x, and the condition as further channels. Raises ValueError where one is not due."""
        c = checked_condition(self.conditioning, given, tuple(x.shape[1:]), len(x))
        return x if c is None else torch.cat([x, c.to(x)], 1)

    def _coefficients(self, sigma: Tensor, x: Tensor) -> tuple[Any, Any, Any, Tensor]:
        if sigma.ndim == 0:
            skip, out, in_, noise = _scalar_coefficients(self.preconditioning, float(sigma))
            return skip, out, in_, torch.tensor(noise, dtype=torch.float64, device=x.device)
        *c, c_noise = self.preconditioning.coefficients(sigma.double())
        c_skip, c_out, c_in = (like(v.to(x.device, x.dtype), x) for v in c)
        return c_skip, c_out, c_in, c_noise.to(x.device)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.preconditioning.round_sigma(sigma)

    def decode(self, x: Tensor) -> Tensor:
        has_decoder = getattr(self.network, "autoencoder", None) is not None
        return self.network.decode(x) if has_decoder else x  # type: ignore[operator]


def _shape_seen(shape: tuple[int, ...], conditioning: Conditioning | None) -> tuple[int, ...]:
    """What the network is built for: (C + K, *size)."""
    return shape if conditioning is None else (shape[0] + conditioning.channels(shape), *shape[1:])


@functools.lru_cache(maxsize=4096)
def _scalar_coefficients(preconditioning: Preconditioning, sigma: float) -> tuple[float, ...]:
    """Coefficients at one level as numbers; cached, since a sampler visits the same levels in every run."""
    return tuple(float(c) for c in preconditioning.coefficients(torch.tensor(sigma, dtype=torch.float64)))


def one_hot(labels: Tensor | Sequence[int] | None, label_dim: int, batch: int) -> Tensor:
    """Labels as vectors (B, label_dim): from indices (B,), from vectors, or zeros for None (unconditional).

    Raises ValueError for an index outside 0 .. label_dim - 1 and for other shapes.
    """
    if labels is None:
        return torch.zeros(batch, label_dim)
    labels = torch.as_tensor(labels)
    if labels.shape == (batch, label_dim):
        return labels.float() if not labels.is_floating_point() else labels
    if labels.shape != (batch,) or labels.is_floating_point():
        raise ValueError(
            f"labels: got {labels.dtype} {tuple(labels.shape)}; expected class indices ({batch},) "
            f"or vectors ({batch}, {label_dim})"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < label_dim:
        raise ValueError(
            f"labels: got {int(labels.min())} to {int(labels.max())}; the classes are 0 to {label_dim - 1}"
        )
    return nn.functional.one_hot(labels.long(), label_dim).float()


class EmpiricalDenoiser(Denoiser):
    """The exact denoiser of a finite data set: D = sum_i w_i y_i, w = softmax(-||x - y_i||^2 / (2 sigma^2)).

    (EDM paper, Eq. 57.) `data` is (n, *), `labels` class indices (n,) or one-hot vectors (n, K): a conditional call
    uses the samples of its class only. Computed in float64; memory 8 bytes a value.
    """

    data: Tensor
    half_norms: Tensor
    classes: Tensor | None

    def __init__(self, data: Tensor, labels: Tensor | None = None, label_dim: int | None = None) -> None:
        super().__init__()
        if data.ndim < 2 or not len(data):
            raise ValueError(f"EmpiricalDenoiser: got data of shape {tuple(data.shape)}; expected (n, *) with n >= 1")
        self.shape = tuple(data.shape[1:])
        flat = data.reshape(len(data), -1).double()
        self.register_buffer("data", flat)
        self.register_buffer("half_norms", 0.5 * (flat**2).sum(1))
        if labels is not None:
            labels = torch.as_tensor(labels)
            labels = labels.argmax(1) if labels.ndim == 2 else labels.long()
            if labels.shape != data.shape[:1]:
                raise ValueError(f"EmpiricalDenoiser: got {len(labels)} labels for {len(data)} samples")
            self.label_dim = label_dim or int(labels.max()) + 1
        self.register_buffer("classes", labels)

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        flat = x.reshape(len(x), -1).double()
        variance = like(sigma.double() ** 2, flat)
        # ||x||^2 is the same for all i and drops out of the softmax
        logits = (flat @ self.data.T - self.half_norms) / variance
        if labels is not None:
            logits = logits + self._class_log_weights(labels, len(x)).to(logits.device)
        return (logits.softmax(1) @ self.data).reshape(x.shape).to(torch.promote_types(x.dtype, torch.float32))

    def _class_log_weights(self, labels: Tensor, batch: int) -> Tensor:
        if self.classes is None:
            raise ValueError("labels: got some for data without classes; leave them out")
        weights = one_hot(labels, self.label_dim, batch).double()
        weights = torch.where(weights.sum(1, keepdim=True) == 0, torch.ones_like(weights), weights)  # no class: all
        weights = weights[:, self.classes]
        if not weights.any(1).all():
            raise ValueError("labels: got a class of which the data have no sample")
        return weights.log()


class GaussianDenoiser(Denoiser):
    """The exact denoiser of N(mean, cov): D = mean + C (C + sigma^2 I)^-1 (x - mean).

    `mean` is one sample (*); `cov` a variance (), variances (*) per coordinate, or a matrix (d, d).
    """

    mean: Tensor
    basis: Tensor | None
    variances: Tensor

    def __init__(self, mean: Tensor, cov: Tensor | float) -> None:
        super().__init__()
        mean, cov = as_float64(mean), as_float64(cov)
        self.shape = tuple(mean.shape)
        d = mean.numel()
        basis = None
        if cov.shape == (d, d) and cov.shape != mean.shape:
            if not torch.allclose(cov, cov.T):
                raise ValueError("GaussianDenoiser: cov is not symmetric; expected a covariance")
            variances, basis = torch.linalg.eigh(cov.double())
        elif cov.shape in ((), mean.shape):
            variances = cov.double().expand(mean.shape).reshape(-1)
        else:
            raise ValueError(f"GaussianDenoiser: got cov {tuple(cov.shape)}; expected (), {self.shape} or ({d}, {d})")
        if not (variances >= -1e-12 * variances.abs().max()).all():
            raise ValueError("GaussianDenoiser: cov has a negative eigenvalue; expected a covariance")
        self.register_buffer("mean", mean.double().reshape(-1))
        self.register_buffer("basis", basis)
        self.register_buffer("variances", variances.clamp(min=0))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        z = x.reshape(len(x), -1).double() - self.mean
        gain = self.variances / (self.variances + like(sigma.double() ** 2, z))
        z = gain * z if self.basis is None else ((z @ self.basis) * gain) @ self.basis.T
        return (self.mean + z).reshape(x.shape).to(torch.promote_types(x.dtype, torch.float32))


class GaussianMixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture of Gaussians: responsibilities times the component denoisers.

    `means` (K, *); `stds` (), (K,) for round components, or (K, *) per coordinate; `weights` (K,), normalised here.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> None:
        super().__init__()
        means, stds = as_float64(means).double(), as_float64(stds).double()
        K = len(means)
        weights = torch.ones(K, dtype=torch.float64) if weights is None else as_float64(weights).double()
        if weights.shape != (K,) or not (weights > 0).all():
            raise ValueError(f"GaussianMixtureDenoiser: weights must be {K} numbers above 0, got {weights.tolist()}")
        self.shape = tuple(means.shape[1:])
        if stds.shape in ((), (K,)):
            stds = stds.reshape(-1, *[1] * (means.ndim - 1))
        elif stds.shape != means.shape:
            raise ValueError(f"GaussianMixtureDenoiser: got stds {tuple(stds.shape)} for means {tuple(means.shape)}")
        self.register_buffer("means", means.reshape(K, -1))
        self.register_buffer("variances", (stds**2).expand(means.shape).reshape(K, -1))
        self.register_buffer("log_weights", (weights / weights.sum()).log())

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        flat = x.reshape(len(x), 1, -1).double()
        variances = self.variances + like(sigma.double() ** 2, flat)  # (B or 1, K, d)
        offset = flat - self.means
        log_density = -0.5 * (offset**2 / variances + variances.log()).sum(-1)
        responsibility = (self.log_weights + log_density).softmax(1)
        component = self.means + self.variances / variances * offset
        D = (responsibility[..., None] * component).sum(1)
        return D.reshape(x.shape).to(torch.promote_types(x.dtype, torch.float32))


class Wrapper(Denoiser):
    """A denoiser made of another one: shape, labels, condition, levels, rounding, finish, decode are that one's."""

    def __init__(self, denoiser: Denoiser | Callable[..., Tensor]) -> None:
        super().__init__()
        self.denoiser = denoiser = as_denoiser(denoiser)
        self.shape, self.label_dim = denoiser.shape, denoiser.label_dim
        self.vector_labels, self.conditioning = denoiser.vector_labels, denoiser.conditioning
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The denoiser's own."""
        return self.denoiser.round_sigma(sigma)

    def finish(self, x: Tensor, **conditions: Any) -> Tensor:
        """The denoiser's own."""
        return self.denoiser.finish(x, **conditions)

    def decode(self, x: Tensor) -> Tensor:
        """The denoiser's own."""
        return self.denoiser.decode(x)


class FixedBatch(Wrapper):
    """Calls a denoiser with batches of exactly `size`, splitting longer ones and padding short ones.

    Kernels choose their order of summation by the batch size, so this makes a sample independent of
    how many others are drawn with it, bit for bit. Wrap the model once: `ed.sample(FixedBatch(model), ...)`.
    """

    def __init__(self, denoiser: Denoiser, size: int = 16) -> None:
        super().__init__(denoiser)
        if size < 1:
            raise ValueError(f"FixedBatch.size: got {size}; expected at least 1")
        self.size = size

    def decode(self, x: Tensor) -> Tensor:
        return torch.cat([self.denoiser.decode(part) for part in x.split(self.size)])

    def denoise(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        n, parts = len(x), []
        for start in range(0, n, self.size):
            pick = torch.arange(start, start + self.size).clamp(max=n - 1)  # repeats the last sample as padding

            def part(value: Any, pick: Tensor = pick) -> Any:
                per_sample = isinstance(value, Tensor) and value.ndim and len(value) == n
                return value[pick.to(value.device)] if per_sample else value

            D = self.denoiser(part(x), part(sigma), **{k: part(v) for k, v in conditions.items()})
            parts.append(D[: n - start])
        return torch.cat(parts)


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


def as_denoiser(denoiser: Denoiser | Callable[..., Tensor]) -> Denoiser:
    """A denoiser as it is, any other callable (x, sigma, **conditions) -> D wrapped. Raises TypeError otherwise."""
    if isinstance(denoiser, Denoiser):
        return denoiser
    if callable(denoiser):
        return FunctionDenoiser(denoiser)
    raise TypeError(f"denoiser: got {type(denoiser).__name__}; expected an ed.Denoiser or a function (x, sigma) -> D")
