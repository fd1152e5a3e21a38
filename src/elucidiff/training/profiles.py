"""Power-function profiles p(tau; gamma, T) ~ tau^gamma on [0, T]: widths, inner products, least squares (EDM2)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from ..component import require

WIDEST = 12**-0.5  # sigma_rel of gamma = 0, the plain mean of all weights


def sigma_rel_of(gamma: float) -> float:
    """The relative width of the profile: sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), its standard deviation / T.

    EDM2 paper, section 3.1. Raises ValueError unless gamma is above -1, where there is a profile.
    """
    require(-1 < gamma < math.inf, f"gamma: got {gamma}; expected a finite number above -1")
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


@functools.lru_cache(maxsize=64)
def gamma_of(sigma_rel: float) -> float:
    """The exponent of a relative width, 0.05 -> 16.97 and 0.10 -> 6.94: the inverse of `sigma_rel_of` from 0 upwards.

    The largest real root of gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + (12 - sigma_rel^-2) = 0.
    Raises ValueError outside (0, 0.2887]: wider profiles would weigh early weights more than late ones.
    """
    require(0 < sigma_rel <= WIDEST, f"sigma_rel: got {sigma_rel}; expected a number in (0, {WIDEST:.4f}], e.g. 0.10")
    a, b = 16 - sigma_rel**-2, 12 - sigma_rel**-2
    gamma = float(np.roots([1.0, 7.0, a, b]).real.max())  # the roots are real: below -3, in (-1, 0), and at least 0
    for _ in range(2):  # Newton, to the last digit: eigenvalues lose some where the roots differ much in size
        gamma -= (((gamma + 7) * gamma + a) * gamma + b) / ((3 * gamma + 14) * gamma + a)
    return max(gamma, 0.0)


def inner_products(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """The integral of p(tau; gamma_a, T_a) p(tau; gamma_b, T_b) over tau, arrays broadcast against each other.

    (gamma_a + 1)(gamma_b + 1) (T_a/T_b)^e / ((gamma_a + gamma_b + 1) max(T_a, T_b)), e = gamma_b if T_a < T_b else
    -gamma_a (EDM2 paper, appendix C).
    """
    e = np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** e / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def coefficients(
    snapshot_times: Sequence[float], snapshot_gammas: Sequence[float], target_time: float, target_gamma: float
) -> np.ndarray:
    """The weights X (n,) of stored averages whose sum is nearest to the average (target_time, target_gamma).

    A X = B with A_ij = <p_i, p_j> and B_i = <p_i, p_target>, X then normalised to sum 1; float64. Times are in images
    (any unit will do, only ratios matter). An average that is stored has weight 1 exactly.
    Raises ValueError for lists of different lengths, times or exponents out of range, and the same average twice.
    """
    t, gamma = _checked(snapshot_times, snapshot_gammas)
    _checked([target_time], [target_gamma])
    stored = (t == target_time) & (gamma == target_gamma)
    if stored.any():
        return stored.astype(np.float64)
    A, B = _system(t, gamma, target_time, target_gamma)
    scale = np.diag(A) ** -0.5  # profiles of unit norm: times that differ by 1000 would cost three digits
    X = scale * np.linalg.lstsq(A * scale * scale[:, None], B * scale, rcond=None)[0]
    return X / X.sum()


def profile_error(
    X: np.ndarray,
    snapshot_times: Sequence[float],
    snapshot_gammas: Sequence[float],
    target_time: float,
    target_gamma: float,
) -> float:
    """How far the profile that X makes is from the one wanted: ||sum_i X_i p_i - p_target|| / ||p_target||.

    It is the error in the average of weights that are independent from step to step, relative to that average's own
    standard deviation; weights that change slowly come out far better. Below 1e-8 it is rounding.
    """
    t, gamma = _checked(snapshot_times, snapshot_gammas)
    A, B = _system(t, gamma, target_time, target_gamma)
    T, g = np.asarray(target_time, np.float64), np.asarray(target_gamma, np.float64)
    norm = float(inner_products(T, g, T, g))
    return math.sqrt(max(float(X @ A @ X - 2 * X @ B) + norm, 0.0) / norm)


def _system(t: np.ndarray, gamma: np.ndarray, T: float, target_gamma: float) -> tuple[np.ndarray, np.ndarray]:
    A = inner_products(t[:, None], gamma[:, None], t, gamma)
    return A, inner_products(t, gamma, np.asarray(T, np.float64), np.asarray(target_gamma, np.float64))


def _checked(times: Sequence[float], gammas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    t, gamma = np.asarray(times, np.float64), np.asarray(gammas, np.float64)
    require(t.ndim == 1 and t.shape == gamma.shape, f"got {t.size} times and {gamma.size} exponents; expected pairs")
    require(t.size > 0, "got no snapshots; expected at least one")
    require(bool(np.isfinite(t).all() and (t > 0).all()), f"times: got {t.tolist()}; expected finite numbers above 0")
    good = bool(np.isfinite(gamma).all() and (gamma >= 0).all())
    require(good, f"gammas: got {gamma.tolist()}; expected finite numbers of at least 0, see gamma_of(sigma_rel)")
    pairs = list(zip(t.tolist(), gamma.tolist(), strict=True))
    twice = next((p for i, p in enumerate(pairs) if p in pairs[:i]), None)
    if twice is not None:
        raise ValueError(f"the average of time {twice[0]:g}, gamma {twice[1]:g} comes twice; leave one out")
    return t, gamma
