"""Solvers of the sampling ODE, the noise around their steps, and the one loop they share."""

from .multistep import DPMpp2M
from .onestep import RK2, RK4, Euler, Heun, Midpoint, Ralston
from .run import Past, Run, State
from .solver import Solver, Stochasticity
from .stochasticity import Ancestral, Churn, Deterministic

__all__ = [
    "RK2",
    "RK4",
    "Ancestral",
    "Churn",
    "DPMpp2M",
    "Deterministic",
    "Euler",
    "Heun",
    "Midpoint",
    "Past",
    "Ralston",
    "Run",
    "Solver",
    "State",
    "Stochasticity",
]
