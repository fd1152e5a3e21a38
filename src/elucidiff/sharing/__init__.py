"""Sampling by many processes, or by one that may be stopped at any time: parts on a disk, merged exactly."""

from .sampling import Standing, sample_into

__all__ = ["Standing", "sample_into"]
