"""Values that are their own configuration: a cell of Table 1 is one small frozen class."""

from __future__ import annotations

import functools
import json
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import FormatError, unknown
from .files import write_atomically

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[Any], Any]:
        """Tell type checkers that subclasses become frozen dataclasses; nothing at run time."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Value:
    """A frozen record that checks its fields, compares by value and converts to JSON and back.

    Subclasses become frozen dataclasses by being defined. Fields annotated `float`, `int`, `bool`,
    `str`, `tuple[...]` or with another `Value` are checked when the value is made: an invalid one
    cannot exist.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclass(frozen=True)(cls)

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]  # a class is hashable
            object.__setattr__(self, name, _checked(getattr(self, name), hint, f"{type(self).__name__}.{name}"))
        self.validate()

    def validate(self) -> None:
        """Check what types cannot say (ranges, order). Raises ValueError. Override where needed."""

    def replace(self, **elements: Any) -> Self:
        """A copy with some fields replaced. Raises ValueError for a name that is not a field."""
        self._check_names(elements)
        return replace(self, **elements)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """The value as JSON data. Infinity is the string "inf"."""
        return {f.name: _to_json(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The value that `to_dict` wrote. Unknown keys raise ValueError naming the nearest key."""
        if not isinstance(data, Mapping):
            raise TypeError(f"{cls.__name__}: got {data!r}; expected an object of fields")
        cls._check_names(data)
        hints = _hints(cls)  # type: ignore[arg-type]
        return cls(**{name: _from_json(value, hints.get(name)) for name, value in data.items()})

    def save(self, path: str | Path) -> None:
        """Write the value as a JSON file, atomically."""
        write_atomically(Path(path), (json.dumps(self.to_dict(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a JSON file that `save` wrote. Raises FormatError with the file's name."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise
        except (ValueError, TypeError) as error:
            raise FormatError(f"{path}: not a {cls.__name__.lower()} file: {error}") from error

    @classmethod
    def _check_names(cls, names: Mapping[str, Any]) -> None:
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for name in names:
            if name not in known:
                raise ValueError(unknown(f"field of {cls.__name__}", name, known))


class Component(Value):
    """One cell of Table 1: a role (the row), a kind (the name in JSON and on the command line), parameters.

    A subclass with `kind=` registers itself under its role:

        class Square(Schedule, kind="square"):
            def sigma(self, t):
                return t**2
    """

    role: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    references: ClassVar[tuple[str, ...]] = ()  # keys of citations.BIBTEX
    _kinds: ClassVar[dict[tuple[str, str], type[Component]]] = {}

    def __init_subclass__(cls, kind: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind is None:
            return
        taken = Component._kinds.get((cls.role, kind))
        if taken is not None:
            raise TypeError(f"{cls.role} {kind!r} is taken by {taken.__module__}.{taken.__qualname__}")
        cls.kind = kind
        Component._kinds[cls.role, kind] = cls

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """All registered kinds of this role, by name."""
        found = {kind: sub for (role, kind), sub in Component._kinds.items() if role == cls.role}
        return typing.cast("dict[str, type[Self]]", found)

    @classmethod
    def of_kind(cls, kind: object) -> type[Self]:
        """The class registered under a kind of this role. Raises ValueError naming the known kinds."""
        kinds = cls.kinds()
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(unknown(cls.role, kind, kinds))
        return kinds[kind]

    def to_dict(self) -> dict[str, Any]:
        """The component as JSON data: its kind and its parameters."""
        return {"kind": self.kind} | super().to_dict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The component of the given kind, e.g. {"kind": "churn", "S_churn": 40, "S_max": "inf"}."""
        if not isinstance(data, Mapping) or "kind" not in data:
            raise TypeError(
                f'{cls.role}: got {data!r}; expected an object with "kind", one of {", ".join(cls.kinds())}'
            )
        parameters = dict(data)
        chosen = cls.of_kind(parameters.pop("kind"))
        return super(Component, chosen).from_dict(parameters)

    def __str__(self) -> str:
        parameters = ", ".join(f"{f.name}={_short(getattr(self, f.name))}" for f in fields(self))
        return f"{self.kind}({parameters})" if parameters else self.kind


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Field types of a dataclass; a name that cannot be resolved (a class local to a function) goes unchecked."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:
        return {}
    return {f.name: hints[f.name] for f in fields(cls)}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value, normalised (lists become tuples), or TypeError saying what was expected."""
    expected = []
    for option in _alternatives(hint):
        accepted, result = _match(value, option, where)
        if accepted:
            return result
        expected.append(getattr(option, "__name__", str(option)))
    raise TypeError(f"{where}: got {value!r} ({type(value).__name__}); expected {' or '.join(expected)}")


def _match(value: Any, hint: Any, where: str) -> tuple[bool, Any]:
    if hint is float:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if number and math.isnan(value):
            raise ValueError(f"{where}: got NaN; expected a number")
        return number, float(value) if number else value
    if hint is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return whole, int(value) if whole else value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)):
            return False, value
        item = typing.get_args(hint)[0]
        return True, tuple(_checked(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is None or isinstance(hint, type):
        return isinstance(value, type(None) if hint is None else hint), value
    return True, value  # callables and other hints are checked by whoever uses them


def _to_json(value: Any) -> Any:
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_to_json(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{value!r} has no JSON form; a component made of Python functions cannot be saved")


def _from_json(value: Any, hint: Any) -> Any:
    for option in _alternatives(hint):
        if isinstance(option, type) and issubclass(option, Value) and isinstance(value, Mapping):
            return option.from_dict(value)
        if option is float and value in ("inf", "-inf"):
            return float(value)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            return tuple(_from_json(v, typing.get_args(option)[0]) for v in value)
    return value
