"""Choices made by measuring: time steps from a model's own paths."""

from .steps import steps_by_dynamic_programming, steps_by_equal_error

__all__ = ["steps_by_dynamic_programming", "steps_by_equal_error"]
