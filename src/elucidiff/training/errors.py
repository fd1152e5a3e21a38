"""What ends a run from within."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why. Snapshots written before are intact."""


class OutOfMemory(TrainingError):
    """A step did not fit into memory; the message names what it was made of, and what to change."""
