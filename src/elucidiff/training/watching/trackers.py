"""Where the numbers and pictures of a run go besides its own files: TensorBoard always, other trackers where asked."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ...errors import MissingExtraError
from ..config import TrainConfig
from ..trainer import Trainer
from .events import EventFile
from .watch import Watcher

PROJECT = "elucidiff"


class Tracker:
    """Is told numbers and pictures of a run, by the number of images seen, which never falls."""

    def start(self, run: Path, config: TrainConfig) -> None:
        """Before the first step; the run directory exists."""

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """Numbers by name; a slash in a name makes a group."""

    def picture(self, images: int, name: str, path: Path) -> None:
        """A PNG file."""

    def close(self) -> None:
        """At the end, also after an error."""


class TensorBoard(Tracker):
    """An event file in RUN/tensorboard, for `tensorboard --logdir RUN`; the package is not needed to write it."""

    def start(self, run: Path, config: TrainConfig) -> None:
        """Open the file."""
        self.file = EventFile(run / "tensorboard")

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """As scalars."""
        self.file.numbers(images, values)

    def picture(self, images: int, name: str, path: Path) -> None:
        """As an image."""
        self.file.picture(images, name, path.read_bytes())

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class PackageTracker(Tracker):
    """A package with init(project, name, config) -> run, run.log(values, step), run.finish(), Image(path).

    Raises MissingExtraError when it is not installed.
    """

    package: ClassVar[str]

    def __init__(self) -> None:
        if importlib.util.find_spec(self.package) is None:
            raise MissingExtraError(self.package, self.package)

    def start(self, run: Path, config: TrainConfig) -> None:
        """Import the package and open a run, named as the run directory, of the project "elucidiff"."""
        self.module = importlib.import_module(self.package)
        self.run = self.module.init(project=PROJECT, name=run.name, config=config.to_dict(), **self.options(run))

    def options(self, run: Path) -> dict[str, Any]:
        """What else `init` is given."""
        return {}

    def numbers(self, images: int, values: Mapping[str, float]) -> None:
        """At the step `images`."""
        self.run.log(dict(values), step=images)

    def picture(self, images: int, name: str, path: Path) -> None:
        """At the step `images`."""
        self.run.log({name: self.module.Image(str(path))}, step=images)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class Wandb(PackageTracker):
    """Weights & Biases. Its files lie in RUN/wandb; WANDB_MODE=offline keeps it from the network."""

    package = "wandb"

    def options(self, run: Path) -> dict[str, Any]:
        """Its folder."""
        return {"dir": str(run)}


class Trackio(PackageTracker):
    """Trackio, which keeps everything on this machine unless its own settings say otherwise."""

    package = "trackio"


KINDS: dict[str, type[PackageTracker]] = {"wandb": Wandb, "trackio": Trackio}


class Trackers(Watcher):
    """TensorBoard and the trackers of a configuration, told the same things by the other watchers.

    One that fails while the model trains is left out from then on, with a warning: hours of training are worth more.
    Raises MissingExtraError when one is not installed.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.trackers: list[Tracker] = [TensorBoard(), *(KINDS[name]() for name in config.trackers)]

    def start(self, trainer: Trainer, run: Path) -> None:
        """Open all; here an error ends the run, before its first step."""
        opened: list[Tracker] = []
        try:
            for tracker in self.trackers:
                tracker.start(run, trainer.config)
                opened.append(tracker)
        except BaseException:
            self.trackers = opened
            self.close()
            raise

    def numbers(self, images: int, values: Mapping[str, float | None]) -> None:
        """Numbers by name; what is None is left out."""
        known = {name: value for name, value in values.items() if value is not None}
        for tracker in tuple(self.trackers):
            self._tell(tracker, "numbers", images, known)

    def picture(self, images: int, name: str, path: Path) -> None:
        """A PNG file of the run."""
        for tracker in tuple(self.trackers):
            self._tell(tracker, "picture", images, name, path)

    def close(self) -> None:
        """Close all."""
        for tracker in tuple(self.trackers):
            self._tell(tracker, "close")

    def _tell(self, tracker: Tracker, what: str, *arguments: Any) -> None:
        try:
            getattr(tracker, what)(*arguments)
        except Exception as error:  # of a package whose errors are its own
            name = type(tracker).__name__
            warnings.warn(f"{name} failed and is left out: {type(error).__name__}: {error}", stacklevel=3)
            self.trackers.remove(tracker)
