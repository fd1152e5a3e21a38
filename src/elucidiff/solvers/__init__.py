"""Solvers of the sampling ODE, the noise around their steps, and the one loop they share."""

from .adaptive import RK45
from .exponential import DEIS, GaussianExponential
from .multistep import AB, IPNDM, DPMpp2M, DPMpp3M
from .onestep import DPM2, RK2, RK4, Euler, Heun, Midpoint, Ralston
from .run import Past, Run, State
from .solver import Solver, Stochasticity
from .stochastic import PC, DPMpp2MSDE, DPMpp3MSDE, DPMppSDE, EulerMaruyama
from .stochasticity import Ancestral, Churn, Deterministic
from .unipc import UniPC

__all__ = [
    "AB",
    "DEIS",
    "DPM2",
    "IPNDM",
    "PC",
    "RK2",
    "RK4",
    "RK45",
    "Ancestral",
    "Churn",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp3M",
    "DPMpp3MSDE",
    "DPMppSDE",
    "Deterministic",
    "Euler",
    "EulerMaruyama",
    "GaussianExponential",
    "Heun",
    "Midpoint",
    "Past",
    "Ralston",
    "Run",
    "Solver",
    "State",
    "Stochasticity",
    "UniPC",
]
