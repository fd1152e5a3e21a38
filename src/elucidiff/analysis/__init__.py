"""Measurements on models, samplers and samples: the paper's instruments, and scores against data."""

from .budget import at_budget, evaluations
from .churn_grid import ChurnGrid
from .compare import Comparison, Point, Spread, compare
from .curvature import Curvature, Straightness, curvature
from .decided import Decided, decided, training_density
from .denoised import Denoised, DenoisedCurve, denoised
from .exact_path import ExactPath, exact_path
from .leak import Leak, leak
from .likelihood import BitsPerDim, LogLikelihood, bits_per_dim, log_likelihood
from .loss_profile import LossProfile, loss_profile
from .scores import Score, reference_and_real, score_samples
from .stochasticity import StochasticitySearch, search_stochasticity
from .trajectories import Trajectories, trajectories
from .truncation import ErrorCurve, GlobalError, TruncationError, global_error, truncation_error

__all__ = [
    "BitsPerDim",
    "ChurnGrid",
    "Comparison",
    "Curvature",
    "Decided",
    "Denoised",
    "DenoisedCurve",
    "ErrorCurve",
    "ExactPath",
    "GlobalError",
    "Leak",
    "LogLikelihood",
    "LossProfile",
    "Point",
    "Score",
    "Spread",
    "StochasticitySearch",
    "Straightness",
    "Trajectories",
    "TruncationError",
    "at_budget",
    "bits_per_dim",
    "compare",
    "curvature",
    "decided",
    "denoised",
    "evaluations",
    "exact_path",
    "global_error",
    "leak",
    "log_likelihood",
    "loss_profile",
    "reference_and_real",
    "score_samples",
    "search_stochasticity",
    "training_density",
    "trajectories",
    "truncation_error",
]
