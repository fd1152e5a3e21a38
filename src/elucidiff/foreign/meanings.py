"""The names that files of weights use, and what a call of each stands for. Everything else is refused or recorded."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import FormatError
from .legacy import read_legacy
from .pickles import key
from .records import Budget, Dtype, Global, Record, Storage, clip
from .storages import DTYPES, STORAGE_MODULES, tensor, whole_numbers

PERSISTENT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("builtins", "__builtin__")
_MODULE_CLASS = re.compile(r"torch\.nn\.modules\.[a-z_]{1,40}\.[A-Z][A-Za-z0-9]{1,40}")
_DTYPE_NAMES = {"float32", "float16", "float64", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}
_NUMPY_CODES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8", "c16", "b1"}

Call = Callable[["Meanings", tuple[Any, ...]], Any]
CALLS: dict[tuple[str, str], Call] = {}  # a function of this module for each function of theirs
CLASSES: dict[tuple[str, str], Callable[[], Any]] = {}  # instances that are plain containers
RECORDED = {PERSISTENT, ("argparse", "Namespace")}  # harmless as records
NAMED = {("torch", n) for n in _DTYPE_NAMES} | {("numpy", "ndarray"), ("builtins", "object"), ("__builtin__", "object")}


@dataclass
class Meanings:
    """What names, calls and states stand for, and a count of what was named.

    `strict` refuses every name that no file of weights needs; otherwise it is recorded. Neither way is
    anything imported or called.
    """

    budget: Budget
    strict: bool = True
    names: Counter[str] = field(default_factory=Counter)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    sources: dict[str, tuple[int, str]] = field(default_factory=dict)  # class name -> bytes, SHA-256
    nested: bool = False  # within the torch file of a storage
    legacy_head: bytes = b""

    def name(self, module: str, name: str) -> Global:
        """A name that is imported. Raises FormatError for one that files of weights do not have."""
        if len(module) + len(name) > 300:
            raise FormatError(f"imports something with a name of {len(module) + len(name):,} characters")
        if not is_known(module, name):
            if self.strict:
                raise FormatError(f"imports {clip(f'{module}.{name}')}, which is no part of plain weights")
            self.unknown[f"{module}.{name}"] += 1
        self.names[f"{module}.{name}"] += 1
        return Global(module, name)

    def call(self, function: Global, args: tuple[Any, ...]) -> Any:
        """The value of function(*args)."""
        where = (function.module, function.name)
        self.calls[where] += 1
        if where in CALLS:
            return CALLS[where](self, args)
        if where in CLASSES and not args:
            return CLASSES[where]()
        if self.strict and where not in RECORDED:
            raise FormatError(f"calls {function} with {len(args)} arguments, which is no part of plain weights")
        if where == PERSISTENT and not self.strict:
            self._note_source(args)
        return Record(function, args)

    def new(self, cls: Global, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> Any:
        """The value of cls.__new__(cls, *args, **kwargs)."""
        where = (cls.module, cls.name)
        self.calls[where] += 1
        if where in CLASSES and not args and not kwargs:
            return CLASSES[where]()
        plain = _MODULE_CLASS.fullmatch(str(cls)) or where == ("argparse", "Namespace")
        if self.strict and (not plain or args or kwargs):
            raise FormatError(f"makes an object of class {cls}, which is no part of plain weights")
        return Record(cls, args, kwargs)

    def build(self, value: Any, state: Any) -> None:
        """value.__setstate__(state)."""
        if isinstance(value, Record):
            if value.state is not None:
                raise FormatError(f"gives an object of {value.function} two states")
            value.state = state
        elif isinstance(value, dict) and isinstance(state, dict):
            pass  # attributes of an OrderedDict: state dicts carry `_metadata`, the versions of torch's modules
        elif isinstance(value, Dtype):
            _dtype_state(value, state)
        elif isinstance(value, np.ndarray):
            _array_state(self, value, state)
        else:
            raise FormatError(f"sets the state of a value of type {type(value).__name__}")

    def _note_source(self, args: tuple[Any, ...]) -> None:
        meta = args[0] if args and isinstance(args[0], dict) else {}
        source = meta.get("module_src")
        if isinstance(source, str):
            raw = source.encode("utf-8")
            self.sources[clip(str(meta.get("class_name")))] = (len(raw), hashlib.sha256(raw).hexdigest())


def is_known(module: str, name: str) -> bool:
    """Whether files of weights may import a name."""
    where = (module, name)
    if where in CALLS or where in CLASSES or where in RECORDED or where in NAMED:
        return True
    return (module in STORAGE_MODULES and name in DTYPES) or bool(_MODULE_CLASS.fullmatch(f"{module}.{name}"))


def meaning_of(*names: tuple[str, str]) -> Callable[[Call], Call]:
    """Enter a function as the meaning of names."""

    def enter(function: Call) -> Call:
        CALLS.update(dict.fromkeys(names, function))
        return function

    return enter


for _module, _name in [("collections", "OrderedDict"), ("dnnlib.util", "EasyDict"), ("dnnlib", "EasyDict")]:
    CLASSES[_module, _name] = dict
for _module in _BUILTINS:
    CLASSES.update({(_module, "dict"): dict, (_module, "list"): list, (_module, "set"): set})


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(message)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and not value)


# ---- torch


@meaning_of(("torch.storage", "_load_from_bytes"))
def _load_from_bytes(meanings: Meanings, args: tuple[Any, ...]) -> Storage:
    """The storage in the bytes of a complete torch file. That file is read by the same interpreter, to the end."""
    _expect(len(args) == 1 and isinstance(args[0], (bytes, memoryview)), "loads a storage from something but bytes")
    _expect(not meanings.nested, "has a torch file within a torch file within a file")
    meanings.budget.spend("files")
    meanings.nested = True
    try:
        value = read_legacy(memoryview(args[0]), meanings)
    except FormatError as error:
        raise FormatError(f"a storage in it {error}") from None
    finally:
        meanings.nested = False
    _expect(isinstance(value, Storage), f"a storage in it is a {type(value).__name__}")
    return value


@meaning_of(("torch._utils", "_rebuild_tensor_v2"))
def _rebuild_tensor(meanings: Meanings, args: tuple[Any, ...]) -> Tensor:
    """(storage, offset, size, stride, requires_grad, hooks[, metadata]) -> the tensor."""
    _expect(len(args) in (6, 7), f"makes a tensor from {len(args)} values")
    _expect(type(args[4]) is bool and _is_empty(args[5]), "has a tensor with hooks")
    return tensor(args[0], args[1], args[2], args[3], meanings.budget)


@meaning_of(("torch._utils", "_rebuild_tensor"))
def _rebuild_old_tensor(meanings: Meanings, args: tuple[Any, ...]) -> Tensor:
    _expect(len(args) == 4, f"makes a tensor from {len(args)} values")
    return tensor(args[0], args[1], args[2], args[3], meanings.budget)


@meaning_of(("torch._utils", "_rebuild_parameter"))
def _rebuild_parameter(meanings: Meanings, args: tuple[Any, ...]) -> Tensor:
    """(data, requires_grad, hooks) -> the tensor: whether it is a parameter shows where it stands."""
    _expect(len(args) == 3 and isinstance(args[0], Tensor), "makes a parameter of something but a tensor")
    _expect(type(args[1]) is bool and _is_empty(args[2]), "has a parameter with hooks")
    return args[0]


@meaning_of(("torch", "Size"))
def _size(meanings: Meanings, args: tuple[Any, ...]) -> tuple[int, ...]:
    _expect(len(args) == 1, "has a size of no form")
    return whole_numbers(args[0], "a size")


@meaning_of(("torch", "device"))
def _device(meanings: Meanings, args: tuple[Any, ...]) -> str:
    _expect(0 < len(args) <= 2 and type(args[0]) is str, "has a device of no form")
    return ":".join(clip(str(a) if type(a) in (str, int) else "?") for a in args)


# ---- Python


@meaning_of(("collections", "OrderedDict"), ("dnnlib.util", "EasyDict"), ("dnnlib", "EasyDict"))
def _ordered(meanings: Meanings, args: tuple[Any, ...]) -> dict[Any, Any]:
    """OrderedDict(pairs), as Python 2 and protocols below 2 write it."""
    if not args:
        return {}
    _expect(len(args) == 1, "makes a dictionary of several values")
    if isinstance(args[0], dict):
        return dict(args[0])
    pairs = args[0]
    good = isinstance(pairs, list) and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs)
    _expect(good, "makes a dictionary of something but pairs")
    meanings.budget.spend("operations", len(pairs))
    return {key(k): v for k, v in pairs}


@meaning_of(("collections", "defaultdict"))
def _defaultdict(meanings: Meanings, args: tuple[Any, ...]) -> dict[Any, Any]:
    _expect(len(args) == 1 and isinstance(args[0], Global), "has a defaultdict of no form")
    return {}


@meaning_of(*((m, n) for m in _BUILTINS for n in ("set", "frozenset")))
def _set(meanings: Meanings, args: tuple[Any, ...]) -> set[Any]:
    _expect(len(args) == 1 and isinstance(args[0], (list, tuple)), "makes a set of something but a list")
    meanings.budget.spend("operations", len(args[0]))
    return {key(v) for v in args[0]}


@meaning_of(("_codecs", "encode"))
def _encode(meanings: Meanings, args: tuple[Any, ...]) -> bytes:
    """Bytes as protocols 0 to 2 write them: text whose characters are the bytes."""
    good = len(args) == 2 and type(args[0]) is str and type(args[1]) is str and args[1] in ("latin1", "latin-1")
    _expect(good, "encodes a text in something but latin1")
    meanings.budget.spend("text", len(args[0]))
    return args[0].encode("latin1")


@meaning_of(*((m, "bytearray") for m in _BUILTINS), *((m, "bytes") for m in _BUILTINS))
def _bytes(meanings: Meanings, args: tuple[Any, ...]) -> bytes:
    raw = args[0] if args else b""
    _expect(len(args) <= 1 and isinstance(raw, (bytes, memoryview)), "makes bytes of something but bytes")
    meanings.budget.spend("text", len(raw))
    return bytes(raw)


@meaning_of(("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor"))
def _reconstructor(meanings: Meanings, args: tuple[Any, ...]) -> Any:
    """(class, base, value): how protocols 0 and 1 make an object."""
    _expect(len(args) == 3 and all(isinstance(a, Global) for a in args[:2]), "has an object of no form")
    value = meanings.new(args[0], (), None)
    if isinstance(value, dict) and isinstance(args[2], dict):
        value.update(args[2])
    else:
        _expect(args[2] is None or not meanings.strict, f"has an object of {args[0]} made from a value")
    return value


# ---- NumPy


@meaning_of(("numpy", "dtype"))
def _dtype(meanings: Meanings, args: tuple[Any, ...]) -> Dtype:
    """dtype("f4", False, True); its state says the byte order."""
    good = 1 <= len(args) <= 3 and type(args[0]) is str and args[0].lstrip("<|=") in _NUMPY_CODES
    _expect(good, f"has a NumPy dtype that is not plain numbers: {clip(args[0] if args else '')}")
    return Dtype(args[0].lstrip("<|="))


def _dtype_state(dtype: Dtype, state: Any) -> None:
    good = isinstance(state, tuple) and len(state) >= 2 and type(state[1]) is str and state[1] in ("<", "|", "=", ">")
    plain = good and all(v is None or (type(v) is int and -1 <= v <= 0) for v in state[2:8])
    _expect(plain, "has a NumPy dtype with fields")
    dtype.order = state[1]


@meaning_of(*((m, "scalar") for m in _NUMPY))
def _scalar(meanings: Meanings, args: tuple[Any, ...]) -> Any:
    """A NumPy scalar, as a number of Python."""
    good = len(args) == 2 and isinstance(args[0], Dtype) and isinstance(args[1], (bytes, memoryview))
    _expect(good and len(args[1]) == args[0].numpy().itemsize, "has a NumPy scalar of no form")
    return np.frombuffer(args[1], args[0].numpy())[0].item()


@meaning_of(*((m, "_reconstruct") for m in _NUMPY))
def _array(meanings: Meanings, args: tuple[Any, ...]) -> Any:
    """An empty array; its state holds the numbers."""
    good = len(args) == 3 and isinstance(args[0], Global) and str(args[0]) == "numpy.ndarray"
    _expect(good, "makes an array of a class that is not numpy.ndarray")
    return np.empty(0, np.int8)


def _array_state(meanings: Meanings, array: Any, state: Any) -> None:
    """(version, shape, dtype, in Fortran order, bytes) into an array; what its own __setstate__ gets is checked."""
    _expect(isinstance(state, tuple) and len(state) == 5, "has an array of no form")
    _, shape, dtype, fortran, raw = state
    sizes, plain = _checked_array(meanings, shape, dtype, raw)
    _expect(type(fortran) in (bool, int), "has an array of no form")
    array.__setstate__((1, sizes, plain, bool(fortran), bytes(raw)))


@meaning_of(*((m, "_frombuffer") for m in _NUMPY))
def _from_buffer(meanings: Meanings, args: tuple[Any, ...]) -> Any:
    """(bytes, dtype, shape, order): how protocol 5 writes an array."""
    _expect(len(args) == 4 and args[3] in ("C", "F"), "has an array of no form")
    sizes, plain = _checked_array(meanings, args[2], args[1], args[0])
    return np.frombuffer(args[0], plain).reshape(sizes, order=args[3]).copy()


def _checked_array(meanings: Meanings, shape: Any, dtype: Any, raw: Any) -> tuple[tuple[int, ...], Any]:
    _expect(isinstance(dtype, Dtype) and isinstance(raw, (bytes, memoryview)), "has an array that is not plain numbers")
    sizes, plain = whole_numbers(shape, "the shape of an array"), dtype.numpy()
    numel = 1
    for n in sizes:
        numel *= n
    _expect(
        len(sizes) <= 32 and numel * plain.itemsize == len(raw),
        f"has an array {clip(str(sizes))} of {len(raw):,} bytes",
    )
    meanings.budget.spend("storage_bytes", len(raw))
    return sizes, plain
