"""What a sampling run leaves: samples, their provenance, and the trajectory that was recorded."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ._version import __version__
from .component import require
from .data.writing import write_image
from .files import folder_written_atomically
from .solvers import State

if TYPE_CHECKING:
    from .sampler import Sampler

Recordable = Literal["x", "denoised"]
ARRAY, PROVENANCE = "samples.npz", "samples.json"  # beside the images, or in their place


@dataclass(frozen=True)
class Trajectory:
    """A recorded run of N steps: times and levels (N + 1,), what was asked of x (N + 1, B, *) and denoised (N, B, *).

    x[0] is the scaled latent, x[i] the state at sigmas[i]. denoised[i] is the first D of step i,
    evaluated at sigma_hat[i] (N,), which differs from sigmas[i] under churn.
    """

    t: Tensor
    sigmas: Tensor
    sigma_hat: Tensor
    x: Tensor | None
    denoised: Tensor | None

    @classmethod
    def joined(cls, parts: Sequence[Trajectory]) -> Trajectory:
        """The trajectories of several batches of one sampler as one."""

        def along_batch(recorded: Sequence[Tensor | None]) -> Tensor | None:
            found = [r for r in recorded if r is not None]
            return torch.cat(found, 1) if found else None

        first = parts[0]
        x, denoised = along_batch([p.x for p in parts]), along_batch([p.denoised for p in parts])
        return cls(first.t, first.sigmas, first.sigma_hat, x, denoised)


class Recorder:
    """Collects the States of one batch into a Trajectory: of "x", "denoised", or both (True)."""

    def __init__(self, record: bool | Collection[Recordable] | None, sigmas: Tensor) -> None:
        self.wanted = recordable(record)
        self.sigmas = sigmas
        self.times: list[float] = []
        self.sigma_hat: list[float] = []
        self.x: list[Tensor] = []
        self.denoised: list[Tensor] = []

    def start(self, x: Tensor, t: float) -> None:
        """Keep the scaled latent x at the first time t."""
        self.times.append(t)
        self.x.append(x)

    def add(self, state: State) -> None:
        """Keep what is wanted of a state."""
        if not self.wanted:
            return
        self.times.append(state.t)
        self.sigma_hat.append(state.sigma_hat)
        if "x" in self.wanted:
            self.x.append(state.x)
        if "denoised" in self.wanted:
            self.denoised.append(state.denoised)

    def trajectory(self) -> Trajectory | None:
        """What was kept; None when nothing was wanted."""
        if not self.wanted:
            return None
        return Trajectory(
            t=torch.tensor(self.times, dtype=torch.float64),
            sigmas=self.sigmas,
            sigma_hat=torch.tensor(self.sigma_hat, dtype=torch.float64),
            x=torch.stack(self.x) if "x" in self.wanted else None,
            denoised=torch.stack(self.denoised) if "denoised" in self.wanted else None,
        )


def recordable(record: bool | Collection[Recordable] | None) -> frozenset[str]:
    """What to keep, as a set. Raises ValueError for anything but "x", "denoised" and True."""
    wanted = frozenset({"x", "denoised"} if record is True else {record} if isinstance(record, str) else record or ())
    require(wanted <= {"x", "denoised"}, f'record: got {sorted(wanted)}; expected "x", "denoised" or True')
    return wanted


class Part(NamedTuple):
    """The samples of one batch: x (B, *), labels (B, label_dim), evaluations of each, what was recorded."""

    x: Tensor
    labels: Tensor | None
    nfe: int
    trajectory: Trajectory | None


@dataclass(frozen=True)
class Result:
    """Samples and where they came from.

    x: (B, *), in the units of the data. nfe: network evaluations for each sample. seconds: wall
    time. labels: (B, label_dim) or None. sigmas: the levels visited.
    """

    x: Tensor
    nfe: int
    seconds: float
    seeds: tuple[int, ...] | None
    labels: Tensor | None
    sampler: Sampler
    sigmas: Tensor
    trajectory: Trajectory | None = None

    @classmethod
    def of_parts(
        cls,
        parts: Sequence[Part],
        *,
        seconds: float,
        seeds: tuple[int, ...] | None,
        sampler: Sampler,
        sigmas: Tensor,
    ) -> Result:
        """The result of a run in one or more batches; its NFE is the largest of any."""
        labels = [part.labels for part in parts if part.labels is not None]
        trajectories = [part.trajectory for part in parts if part.trajectory is not None]
        return cls(
            x=torch.cat([part.x for part in parts]),
            nfe=max(part.nfe for part in parts),
            seconds=seconds,
            seeds=seeds,
            labels=torch.cat(labels) if labels else None,
            sampler=sampler,
            sigmas=sigmas,
            trajectory=Trajectory.joined(trajectories) if trajectories else None,
        )

    def provenance(self) -> dict[str, Any]:
        """Everything needed to draw the same samples again, as JSON data."""
        try:
            sampler: dict[str, Any] | str = self.sampler.to_dict()
        except TypeError:  # made of Python functions: it can be named, but not be read back
            sampler = repr(self.sampler)
        return {
            "elucidiff": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "sampler": sampler,
            "sigmas": self.sigmas.tolist(),
            "nfe": self.nfe,
            "seconds": round(self.seconds, 3),
            "seeds": self.seeds,
            "labels": None if self.labels is None else self.labels.tolist(),
            "shape": list(self.x.shape),
            "dtype": str(self.x.dtype).removeprefix("torch."),
        }

    def save(self, folder: str | Path, **notes: Any) -> Path:
        """Write the samples (PNG a sample for 1 or 3 channels, else samples.npz) and samples.json into a new folder.

        `notes` are added to the JSON. Raises FileExistsError when the folder has something in it.
        """
        folder = Path(folder)
        with folder_written_atomically(folder) as new:
            names = file_names(self.seeds or range(len(self.x)))
            if self.x.ndim == 4 and self.x.shape[1] in (1, 3):
                for name, x in zip(names, self.x, strict=True):
                    write_image(new / f"{name}.png", x.detach())
            else:
                import numpy as np

                np.savez(new / ARRAY, samples=self.x.detach().cpu().numpy())
            self.write_provenance(new, **notes)
        return folder

    def write_provenance(self, folder: Path, **notes: Any) -> None:
        """Write samples.json into a folder: the notes, then the provenance.

        Labels are written row by row: as one text, those of 50,000 samples of 1,000 classes would take 6 GB.
        """
        facts = json.dumps(notes | replace(self, labels=None).provenance(), indent=1)
        with (folder / PROVENANCE).open("w", encoding="utf-8") as file:
            if self.labels is not None:
                before, none, facts = facts.partition('\n "labels": null')  # one blank deep: only the provenance's own
                file.write(before + none.replace("null", "["))
                for i, row in enumerate(self.labels):
                    numbers = ",\n   ".join(str(number) for number in row.tolist())
                    file.write(f"{',' if i else ''}\n  [\n   {numbers}\n  ]")
                file.write("\n ]")
            file.write(facts + "\n")


def file_names(seeds: Sequence[int]) -> list[str]:
    """000007 for seed 7; a seed used before, say with another class, gets a number: 000007-1."""
    earlier: Counter[int] = Counter()
    names = []
    for seed in seeds:
        names.append(f"{seed:06d}-{earlier[seed]}" if earlier[seed] else f"{seed:06d}")
        earlier[seed] += 1
    return names
