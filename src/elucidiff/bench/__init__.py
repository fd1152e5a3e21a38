"""Benchmarks whose tables stand in docs/benchmarks.md: how exact samplers are for their number of evaluations."""

from __future__ import annotations

from .run import run_solvers

__all__ = ["run_solvers"]
