"""Everything that is known of a model, in one report: the paper's instruments and a recommendation of samplers."""

from .run import INSTRUMENTS, analyze

__all__ = ["INSTRUMENTS", "analyze"]
