"""Features by a function of the user's own, named as module:function."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
from dataclasses import field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..component import require
from ..files import sha256
from .features import Features

_NAME = re.compile(r"(?P<module>[^:]*(?::[\\/])?[^:]+):(?P<path>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


class Named(Features):
    """Features by a Python function: samples (B, *) in float32, images in [-1, 1], -> finite features (B, d).

    The function gets at most 500 samples at a time, where they are, without gradients. It is the function's part that
    features do not depend on the batch. `named_features` makes one of a name; there is none in `Features.from_dict`,
    since that would execute what a file says.

    name: module:function. sha256: of the file that defines the function, "" where there is none.
    """

    kind: ClassVar[str] = "function"
    name: str
    sha256: str
    function: object = field(compare=False, repr=False)

    def validate(self) -> None:
        """Check that the function can be called."""
        require(callable(self.function), f"features {self.name}: is a {type(self.function).__name__}, not callable")

    def check(self, shape: tuple[int, ...]) -> None:
        """Any shape: the function itself knows what it reads."""

    def dim(self, shape: tuple[int, ...]) -> int:
        """The number of features d, of a ramp from -1 to 1: what is constant may have no finite features."""
        return self.features(torch.linspace(-1, 1, math.prod(shape)).reshape(1, *shape)).shape[1]

    def extract(self, batch: Tensor) -> Tensor:
        """The features of one batch. Raises ValueError for what is no finite (B, d), and where the function fails."""
        function: Any = self.function
        try:
            found = function(batch.float())
        except Exception as error:
            raise ValueError(f"features {self.name}: failed at samples {tuple(batch.shape)}: {_said(error)}") from error
        if not isinstance(found, Tensor) or found.is_complex():
            got = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(f"features {self.name}: gave {got}; expected a tensor of real numbers (B, d)")
        require(
            found.ndim == 2 and len(found) == len(batch) and found.shape[1] >= 1,
            f"features {self.name}: gave {tuple(found.shape)} for {len(batch)} samples; expected ({len(batch)}, d)",
        )
        require(bool(torch.isfinite(found).all()), f"features {self.name}: gave values that are not finite")
        return found.to(batch)

    def to_dict(self) -> dict[str, Any]:
        """Name and SHA-256, as JSON data."""
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256}

    def __str__(self) -> str:
        return f"{self.name} {self.sha256[:8]}".rstrip()


def is_named(text: str) -> bool:
    """Whether a text has the form module:function or FILE.py:function."""
    found = _NAME.fullmatch(text)
    return found is not None and (_is_file(found["module"]) or _MODULE.fullmatch(found["module"]) is not None)


def named_features(text: str) -> Named:
    """The features by the function that module:function or FILE.py:function names; the module is imported.

    Raises ValueError for a text of another form, and when the module cannot be imported or has no such function;
    FileNotFoundError for a file that is not there.
    """
    found = _NAME.fullmatch(text)
    if found is None or not is_named(text):
        raise ValueError(f"features: got {text!r}; expected module:function or FILE.py:function")
    module = _imported(found["module"])
    function: Any = module
    for name in found["path"].split("."):
        if not hasattr(function, name):
            raise ValueError(f"features {text}: {found['module']} has no {name!r}")
        function = getattr(function, name)
    place = _source(function, module)
    where = Path(found["module"]).name if _is_file(found["module"]) else found["module"]
    return Named(f"{where}:{found['path']}", "" if place is None else sha256(place), function)


def _is_file(module: str) -> bool:
    return module.endswith(".py")


def _imported(name: str) -> ModuleType:
    path = Path(name).expanduser()
    if _is_file(name) and not path.is_file():
        raise FileNotFoundError(f"{name}: no such file of features")
    try:
        return _executed(path) if _is_file(name) else importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"features {name}: cannot be imported ({_said(error)})") from error


def _executed(path: Path) -> ModuleType:
    """The module of a file, under a name of its own."""
    own = f"elucidiff_features_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(own, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module  # so that annotations of its classes can be resolved
    spec.loader.exec_module(module)
    return module


def _source(function: Any, module: ModuleType) -> Path | None:
    """The file that defines a function, or of the module where that is not known; None for what is built in."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except (TypeError, ValueError):
        file = getattr(module, "__file__", None)
    return Path(file) if file is not None and Path(file).is_file() else None


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
