"""The four problems of the solver benchmark: denoisers in closed form or from one small network, noise, references.

Each is an ODE dx/dsigma = (x - D(x; sigma))/sigma from x(80) = 80 z. The data lie beside the project
(`shared/data/solver_problems`); references were computed there by an eighth-order method at tolerances of 1e-10.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ..denoiser import Denoiser, GaussianMixtureDenoiser
from ..sampler import Sampler, sample
from ..solvers import RK4
from ..timesteps import Fixed

SIGMA_MAX, SIGMA_MIN = 80.0, 0.002
SEED = 220600364
TEST, LEARNING = 0, 1  # splits of the noise: the test noise is never used to choose anything


class DiagonalMixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture of Gaussians with diagonal covariances, by four matrix products.

    `means`, `variances` (K, d), `weights` (K,). With P_k = 1/(v_k + sigma^2), G_k = v_k P_k and responsibilities r:
    ln p_k = -(x^2 P_k - 2 x P_k m_k + m_k^2 P_k - sum ln P_k)/2,  D = r ((1 - G) m) + x (r G). For 80 components in
    3,072 dimensions a broadcast over (B, K, d) takes 16 times as long; the squares lose no digits here, since x^2 P
    stays below 1e7.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, variances: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.shape = (means.shape[1],)
        self.register_buffer("means", means.double())
        self.register_buffer("variances", variances.double())
        self.register_buffer("log_weights", (weights / weights.sum()).double().log())

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D for one level sigma ()."""
        P = 1 / (self.variances + sigma.double() ** 2)
        gain = self.variances * P
        mP = self.means * P
        constant = self.log_weights - 0.5 * ((self.means * mP).sum(1) - P.log().sum(1))
        r = (constant - 0.5 * (x**2 @ P.T) + x @ mP.T).softmax(1)
        return r @ (self.means - gain * self.means) + x * (r @ gain)


class FullMixtureDenoiser(Denoiser):
    """The exact denoiser of equally weighted Gaussians with covariances V_k diag(e_k) V_k^T.

    `means`, `eigenvalues` (K, d), `eigenvectors` (K, d, d), in columns.
    """

    means: Tensor
    eigenvalues: Tensor
    forth: Tensor
    back: Tensor
    centres: Tensor

    def __init__(self, means: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> None:
        super().__init__()
        K, d = means.shape
        V, R = torch.linalg.qr(eigenvectors.double())  # stored in float32: orthonormal to 5e-8 only, here to 1e-15
        V = V * R.diagonal(dim1=1, dim2=2).sign()[:, None]
        self.shape = (d,)
        self.register_buffer("means", means.double())
        self.register_buffer("eigenvalues", eigenvalues.double())
        self.register_buffer("forth", V.permute(1, 0, 2).reshape(d, K * d).contiguous())  # x @ forth: all V_k^T x
        self.register_buffer("back", V.transpose(1, 2).reshape(K * d, d).contiguous())
        self.register_buffer("centres", torch.einsum("kd,kde->ke", self.means, V))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D for one level sigma ()."""
        K, d = self.means.shape
        total = self.eigenvalues + sigma.double() ** 2
        z = (x @ self.forth).reshape(len(x), K, d) - self.centres
        r = (-0.5 * (z**2 / total + total.log()).sum(2)).softmax(1)
        z = z * (self.eigenvalues / total) * r[..., None]
        return r @ self.means + z.reshape(len(x), K * d) @ self.back


class DigitsDenoiser(Denoiser):
    """A trained network on 8x8 digits, in principal-component coordinates: residual blocks of width 384, in float64.

    y = x B^T + m, D = (c_skip y + c_out F(c_in y, ln(sigma)/4) - m) B with EDM's coefficients at sigma_data 0.75.
    """

    sigma_data = 0.75

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.shape = (weights["pca.basis"].shape[1],)
        self.blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("b."))
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "_"), value.double())

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias"))

    def _network(self, x: Tensor, c_noise: Tensor) -> Tensor:
        phase = c_noise * self.get_buffer("f")
        h = self._linear("i", x) + self._linear("e", torch.cat([phase.cos(), phase.sin()]))
        for k in range(self.blocks):
            scale, shift = self.get_buffer(f"b_{k}_0_weight"), self.get_buffer(f"b_{k}_0_bias")
            inner = self._linear(f"b_{k}_1", functional.layer_norm(h, h.shape[1:], scale, shift))
            h = h + self._linear(f"b_{k}_3", functional.silu(inner))
        return self._linear("o", functional.silu(h))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D for one level sigma ()."""
        s, basis, mean = float(sigma), self.get_buffer("pca_basis"), self.get_buffer("pca_mean")
        total = s**2 + self.sigma_data**2
        y = torch.addmm(mean, x.double(), basis.T)
        F = self._network(y / math.sqrt(total), torch.tensor(math.log(s) / 4, dtype=torch.float64))
        return (self.sigma_data**2 / total * y + s * self.sigma_data / math.sqrt(total) * F - mean) @ basis


@dataclass(frozen=True)
class Statistics:
    """What track T1 may know of the data: mean and variance of each coordinate, (d,)."""

    mean: Tensor
    variance: Tensor

    @property
    def sigma_data(self) -> float:
        """The standard deviation over all coordinates."""
        return float(self.variance.mean().sqrt())


@dataclass(frozen=True, eq=False)
class Problem:
    """A denoiser, the end points of its ODE for the test noise, and what may be known of its data.

    at_sigma_min, at_zero: (n, d) float64, the solution at sigma = 0.002 and at 0.
    """

    name: str
    denoiser: Denoiser
    at_sigma_min: Tensor
    at_zero: Tensor
    moments: Callable[[], Statistics] | None = field(default=None, repr=False)

    def latents(self, n: int | None = None, split: int = TEST) -> Tensor:
        """The first n noises of a split (as many as there are references when None), (n, d), of unit variance."""
        n = len(self.at_zero) if n is None else n
        return noise(n, self.at_zero.shape[1], split)

    def reference(self, *, to_zero: bool) -> Tensor:
        """The exact solution for the test noise, at 0 or at sigma_min."""
        return self.at_zero if to_zero else self.at_sigma_min

    @functools.cached_property
    def statistics(self) -> Statistics:
        """From the formula of the data's distribution; else from 64 paths of the learning noise."""
        if self.moments is not None:
            return self.moments()
        ends = self.teacher[2]
        return Statistics(ends.mean(0), ends.var(0))

    @functools.cached_property
    def teacher(self) -> tuple[Tensor, Tensor, Tensor]:
        """What track T1 may learn from: learning noise, (n, d), and its solutions at sigma_min and at 0.

        64 paths, or 32 where each has hundreds of coordinates: they say as much and cost half.
        """
        latents = self.latents(64 if self.at_zero.shape[1] < 500 else 32, LEARNING)
        return latents, *solved(self.denoiser, latents)


def noise(n: int, d: int, split: int) -> Tensor:
    """The benchmark's standard normal noise, (n, d) float64."""
    return torch.from_numpy(np.random.default_rng([SEED, split]).standard_normal((n, d)))


def solved(denoiser: Denoiser, latents: Tensor, steps: int = 300) -> tuple[Tensor, Tensor]:
    """A fine solution of the ODE: (at sigma = 0.002, at 0), each (n, d), by RK4 on geometric levels.

    With 300 steps the errors are near 1e-7 and the cost is 4 evaluations a step; then another fifth
    of the steps down to 1e-6 and Euler's step to 0.
    """

    def levels(high: float, low: float, n: int) -> tuple[float, ...]:
        inner = np.geomspace(high, low, n + 1)[1:-1].tolist()
        return (high, *inner, low)

    down = Sampler(solver=RK4(), timesteps=Fixed(levels(SIGMA_MAX, SIGMA_MIN, steps)), steps=steps + 1, to_zero=False)
    at_min = sample(denoiser, down, latents=latents).x
    few = max(steps // 5, 8)
    rest = Sampler(solver=RK4(), timesteps=Fixed(levels(SIGMA_MIN, 1e-6, few)), steps=few + 1)
    return at_min, sample(denoiser, rest, latents=at_min / SIGMA_MIN).x


def load(folder: str | Path) -> dict[str, Problem]:
    """All four problems of a folder. Raises FileNotFoundError naming the file that is missing."""
    folder = Path(folder)
    makers = {
        "gmm_cifar_diagonal": _diagonal,
        "gmm_cifar_full": _full,
        "digits_mlp": _digits,
        "gmm_2d": _plane,
    }
    problems = {}
    for name, make in makers.items():
        ends = _arrays(folder / f"reference_{name}.npz")
        denoiser, moments = make(folder)
        problems[name] = Problem(name, denoiser, ends["at_sigma_min"], ends["at_zero"], moments)
    return problems


def _arrays(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --problems expects the folder of the solver benchmark's data")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


Made = tuple[Denoiser, Callable[[], Statistics] | None]


def _mixture_moments(weights: Tensor, means: Tensor, variances: Tensor) -> Statistics:
    """Mean and variances of a mixture, from those of its components, (K, d)."""
    w = (weights / weights.sum()).double()
    mean = w @ means
    return Statistics(mean, w @ (variances + (means - mean) ** 2))


def _diagonal(folder: Path) -> Made:
    a = _arrays(folder / "gmm_cifar_diagonal.npz")
    denoiser = DiagonalMixtureDenoiser(a["means"], a["variances"], a["weights"])
    return denoiser, lambda: _mixture_moments(a["weights"], denoiser.means, denoiser.variances)


def _full(folder: Path) -> Made:
    a = _arrays(folder / "gmm_cifar_full.npz")
    denoiser = FullMixtureDenoiser(a["means"], a["eigenvalues"], a["eigenvectors"])
    variances = torch.einsum("kde,ke->kd", a["eigenvectors"].double() ** 2, denoiser.eigenvalues)
    return denoiser, lambda: _mixture_moments(torch.ones(len(variances)), denoiser.means, variances)


def _digits(folder: Path) -> Made:
    path = folder / "digits_mlp.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --problems expects the folder of the solver benchmark's data")
    return DigitsDenoiser(load_file(path)), None


def _plane(_: Path) -> Made:
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.cat([torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([[0.25, 0.0]])])
    stds = torch.cat([torch.full((8, 2), 0.05, dtype=torch.float64), torch.tensor([[0.2, 0.02]], dtype=torch.float64)])
    weights = torch.tensor([1, 2, 1, 2, 1, 2, 1, 2, 3], dtype=torch.float64)
    return GaussianMixtureDenoiser(means, stds, weights), lambda: _mixture_moments(weights, means, stds**2)
