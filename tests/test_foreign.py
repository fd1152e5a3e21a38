"""Files that strangers wrote (F1): equal bits, nothing executed, and one kind of error for all that is wrong."""

import contextlib
import hashlib
import io
import json
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import foreign_files as ff
from elucidiff import foreign
from elucidiff.errors import FormatError
from elucidiff.foreign import published

WATCHED = {"on": False, "events": []}
sys.addaudithook(
    lambda event, args: WATCHED["events"].append(event) if WATCHED["on"] and event in ff.EXECUTION else None
)


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory):
    """What torch and safetensors import when they are first used is imported."""
    path = tmp_path_factory.mktemp("warm") / "file"
    for raw in ff.samples().values():
        path.write_bytes(raw)
        foreign.inspect(path)
        path.unlink()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Bytes to a file; the canary's place is set, and stays empty."""
    monkeypatch.setenv("ELUCIDIFF_CANARY", str(tmp_path / "canary"))
    monkeypatch.delattr(sys, "_elucidiff_canary", raising=False)
    count = iter(range(10**6))

    def put(raw):
        path = tmp_path / f"file{next(count)}"
        path.write_bytes(raw)
        return path

    yield put
    assert not (tmp_path / "canary").exists()
    assert not hasattr(sys, "_elucidiff_canary")


def watched(function, *args):
    """Call while Python reports every import, compilation, execution and process that is started."""
    WATCHED["events"].clear()
    WATCHED["on"] = True
    try:
        return function(*args)
    finally:
        WATCHED["on"] = False
        assert WATCHED["events"] == []


def assert_same(got, wanted):
    if isinstance(wanted, torch.Tensor):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape and not got.requires_grad
        assert (
            got.contiguous().view(-1).view(torch.uint8).equal(wanted.detach().contiguous().view(-1).view(torch.uint8))
        )
    elif isinstance(wanted, dict):
        assert type(got) is dict and list(got) == list(wanted)
        for k, v in wanted.items():
            assert_same(got[k], v)
    elif isinstance(wanted, (list, tuple)):
        assert type(got) is (tuple if isinstance(wanted, tuple) else list) and len(got) == len(wanted)
        for g, w in zip(got, wanted, strict=True):
            assert_same(g, w)
    elif isinstance(wanted, np.ndarray):
        assert got.dtype.newbyteorder("=") == wanted.dtype.newbyteorder("=") and np.array_equal(got, wanted)
    elif isinstance(wanted, (bytes, bytearray)):
        assert bytes(got) == wanted
    else:
        assert type(got) is type(wanted) or isinstance(wanted, np.generic)
        assert got == wanted


# ------------------------------------------------------------------ good files


TREE = {
    "values": [1, -1, 255, 256, 65536, -(2**31), 2**40, 2**200, -(2**63), 0.1, float("inf"), True, False, None],
    "texts": ["", "a\nb", "ü", "日本", "x" * 300, "tab\t'quote\""],
    "bytes": (b"", b"\x00\xff", b"y" * 10000, bytearray(b"abc")),
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "sets": {1, "two", None},
    "keys": {1: "int", "s": "str", b"b": "bytes", None: "none", 2.5: "float"},
    "ordered": OrderedDict(a=1, b=OrderedDict()),
    "shared": [[1, 2]] * 3,
    "scalars": [np.float32(3.5), np.int64(-7), np.bool_(True)],
    "arrays": [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)), np.zeros((0, 3))],
    "big endian": np.arange(3, dtype=">i4"),
    "state": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(),
    "sizes": torch.zeros(2, 3).shape,
    "parameter": torch.nn.Parameter(torch.randn(3)),
    "view": torch.arange(24.0).reshape(4, 6)[1:3, ::2].t(),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "dtypes": [torch.tensor([0, 1, 100]).to(d) for d in (torch.float32, torch.float16, torch.float64, torch.bfloat16,
               torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128)],
}  # fmt: skip


def plain(tree):
    return {k: tuple(v) if k == "sizes" else v for k, v in tree.items()}


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(write, protocol):
    assert_same(watched(foreign.read, write(pickle.dumps(TREE, protocol=protocol))), plain(TREE))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False])
def test_torch_files(write, new, protocol):
    buffer = io.BytesIO()
    torch.save(TREE, buffer, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    assert_same(watched(foreign.read, write(buffer.getvalue())), plain(TREE))


def test_safetensors(write):
    weights = ff.sample_weights()
    got = foreign.tensors(write(save(weights)))
    assert {k: v.tolist() for k, v in got.items()} == {k: v.tolist() for k, v in weights.items()}


def test_tensors_that_share_a_storage_still_do(write):
    base = torch.arange(6.0)
    buffer = io.BytesIO()
    torch.save([base, base[2:]], buffer)
    a, b = foreign.read(write(buffer.getvalue()))
    a[3] = 70
    assert b[1] == 70


@pytest.mark.parametrize("new", [True, False])
def test_views_of_storages(write, new):
    """PyTorch 1.0 and before named a part of a storage by a view: (key, offset, length)."""
    numbers = np.arange(6, dtype="<f4").tobytes()
    build = tensor_of(pid("FloatStorage", "0", 6, view=("v", 2, 3)), size=(3,))
    raw = (
        torch_zip(PROTO2 + build + b".", {"0": numbers})
        if new
        else legacy(build, ["0"], struct.pack("<q", 6) + numbers)
    )
    assert foreign.read(write(raw)).tolist() == [2, 3, 4]


# ------------------------------------------------------------------ published modules


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_published_snapshot_is_read_and_its_source_is_not_run(write, protocol):
    weights = ff.sample_weights()
    arguments = {"img_resolution": 4, "img_channels": 3, "model_type": "SongUNet", "sigma_max": float("inf")}
    path = write(ff.snapshot("EDMPrecond", arguments, weights, protocol))
    found = watched(published.modules, path)
    assert list(found) == ["ema"]
    ema = found["ema"]
    assert ema.class_name == "EDMPrecond" and ema.kwargs == arguments and ema.args == ()
    assert ema.children["model"].class_name == "SongUNet"
    assert ema.source_sha256 == hashlib.sha256(ff.CANARY.encode()).hexdigest()
    assert_same(dict(sorted(ema.state.items())), dict(sorted(weights.items())))


def test_the_state_is_named_and_ordered_as_by_torch(write):
    module = ff.module(ff.sample_weights(), "EDMPrecond")
    module.register_buffer("passing", torch.zeros(2), persistent=False)
    module.register_buffer("absent", None)
    got = published.modules(write(ff.dumps(module)))[""].state
    assert_same(got, dict(module.state_dict()))
    assert list(got) == list(module.state_dict())


def test_the_canary_sings_for_pickle(tmp_path):
    """The files above do execute their source where they are unpickled: the tests could fail."""
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(ff.snapshot("EDMPrecond", {"img_channels": 3, "model_type": "SongUNet"}, ff.sample_weights()))
    code = f"import foreign_files as f, pickle\nwith f.fake_modules(): pickle.load(open({str(path)!r}, 'rb'))"
    environment = {"ELUCIDIFF_CANARY": str(tmp_path / "canary"), "OMP_NUM_THREADS": "1", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, check=True)
    assert (tmp_path / "canary").read_text() == "executed"


def test_arguments_by_position(write):
    module = ff.module(ff.sample_weights(), "EDMPrecond", args=(4, 3), kwargs={"label_dim": 2})
    got = published.modules(write(ff.dumps(module)))[""]
    assert got.arguments("img_resolution", "img_channels", "label_dim") == {
        "img_resolution": 4,
        "img_channels": 3,
        "label_dim": 2,
    }
    with pytest.raises(FormatError, match="2 arguments by position; 1 are known"):
        got.arguments("img_resolution")
    with pytest.raises(FormatError, match="'?label_dim'? twice"):
        got.arguments("img_resolution", "label_dim")


def test_inspection_says_what_would_run(write):
    path = write(ff.snapshot("EDMPrecond", {"img_channels": 3, "model_type": "SongUNet"}, ff.sample_weights()))
    found = watched(foreign.inspect, path)
    assert found.format == "pickle" and found.size == path.stat().st_size
    assert found.tensors == 4 and found.numbers == 24
    assert found.executes["torch_utils.persistence._reconstruct_persistent_obj"] > 3
    assert found.sources["EDMPrecond"] == (len(ff.CANARY), hashlib.sha256(ff.CANARY.encode()).hexdigest())
    assert found.unknown == {}
    assert "would execute source of EDMPrecond: " in str(found)


def test_inspection_of_an_attack(write):
    path = write(b"\x80\x04" + call("os", "system", text("touch canary")) + b".")
    found = watched(foreign.inspect, path)
    assert found.executes == {"os.system": 1} and found.unknown == {"os.system": 1}
    assert "does not belong in weights: os.system" in str(found)


# ------------------------------------------------------------------ state dicts within files


def test_choices_of_state_dicts(write):
    a, b = {"w": torch.ones(2)}, {"w": torch.zeros(2), "b": torch.zeros(1)}
    path = write(pickle.dumps({"model": a, "ema": {"inner": b}, "step": 3}))
    assert list(foreign.tensors(path, "model")) == ["w"]
    assert list(foreign.tensors(path, "ema.inner")) == ["w", "b"]
    for key in (None, "nothing"):
        with pytest.raises(ValueError, match=r"key: got .*: model \(1 tensors\), ema.inner \(2 tensors\)"):
            foreign.tensors(path, key)
    assert list(foreign.tensors(write(pickle.dumps({"state_dict": b})))) == ["w", "b"]
    with pytest.raises(FormatError, match="holds no tensors by name"):
        foreign.tensors(write(pickle.dumps([1, 2])))


def test_keys_that_are_not_plain_are_inert(write):
    got = foreign.read(write(pickle.dumps({(1, 2): "a", 2**100: "b"})))
    assert [type(k) for k in got] == [foreign.Key, foreign.Key]
    assert [k.value for k in got] == [(1, 2), 2**100]


# ------------------------------------------------------------------ attacks, written opcode by opcode

PROTO2, PROTO4 = b"\x80\x02", b"\x80\x04"


def text(s):
    raw = s.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module, attribute):
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def call(module, attribute, *args):
    return name(module, attribute) + b"(" + b"".join(args) + b"tR"


def integer(n):
    return b"\x8a" + bytes([len(n.to_bytes(9, "little", signed=True))]) + n.to_bytes(9, "little", signed=True)


def numbers(*values):
    return b"(" + b"".join(integer(v) for v in values) + b"t"


def blob(raw):
    return b"B" + struct.pack("<I", len(raw)) + raw


def pid(kind, key, numel, module="torch", view=None):
    extra = b"N" if view is None else b"(" + text(view[0]) + integer(view[1]) + integer(view[2]) + b"t"
    return b"(" + text("storage") + name(module, kind) + text(key) + text("cpu") + integer(numel) + extra + b"tQ"


def tensor_of(storage, offset=0, size=(2,), stride=None, hooks=b"}"):
    stride = stride or (1,) * len(size)
    return call(
        "torch._utils", "_rebuild_tensor_v2", storage, integer(offset), numbers(*size), numbers(*stride), b"\x89", hooks
    )


MAGIC = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."


def legacy(body, keys, data, head=None):
    head = MAGIC + PROTO2 + b"M\xe9\x03." + PROTO2 + b"}." if head is None else head
    listed = b"](" + b"".join(text(k) for k in keys) + b"e."
    return head + PROTO2 + body + b"." + PROTO2 + listed + data


ONE = struct.pack("<q", 4) + np.arange(4, dtype="<f4").tobytes()  # a storage of four numbers
GOOD = legacy(tensor_of(pid("FloatStorage", "0", 4)), ["0"], ONE)


def nested(raw, **options):
    return PROTO2 + tensor_of(call("torch.storage", "_load_from_bytes", blob(raw)), **options) + b"."


STORAGE = legacy(pid("FloatStorage", "0", 4), ["0"], ONE)
LARGE = legacy(pid("FloatStorage", "0", 4000), ["0"], struct.pack("<q", 4000) + bytes(16000))


def torch_zip(pkl, data, edit=lambda entries: entries, compression=zipfile.ZIP_STORED):
    entries = [
        ("archive/data.pkl", pkl),
        ("archive/byteorder", b"little"),
        *((f"archive/data/{k}", v) for k, v in data.items()),
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *a, **k: None)  # of duplicate names
        for entry, content in edit(entries):
            archive.writestr(entry, content)
    return buffer.getvalue()


FOUR = np.arange(4, dtype="<f4").tobytes()
BODY = PROTO2 + tensor_of(pid("FloatStorage", "0", 4)) + b"."
GOOD_ZIP = torch_zip(BODY, {"0": FOUR})


def test_the_attacks_are_made_from_files_that_work(write):
    for raw in (GOOD, nested(STORAGE), GOOD_ZIP):
        assert watched(foreign.read, write(raw)).tolist() == [0, 1]
    assert foreign.read(write(nested(STORAGE, offset=1, size=(1, 3), stride=(9, 1)))).tolist() == [[1, 2, 3]]


TOUCH = text('touch "$ELUCIDIFF_CANARY"')
PYTHON = text("import os; open(os.environ['ELUCIDIFF_CANARY'], 'w')")


def linked(entries):
    info = zipfile.ZipInfo("archive/data/0")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return [e for e in entries if e[0] != "archive/data/0"] + [(info, b"/etc/passwd")]


def renamed(new):
    return lambda entries: [(new if n == "archive/data/0" else n, c) for n, c in entries]


def patched(raw, old, new, count=-1):
    assert old in raw
    return raw.replace(old, new, count)


def laughs(levels, width=10):
    """A list of ten times the same list of ten times the same list ..."""
    body = b"](K\x01e"
    for _ in range(levels):
        body = b"](" + body + b"2" * (width - 1) + b"e"
    return PROTO2 + body + b"."


def laughs_by_memo(levels):
    body = b"]q\x00"
    for i in range(levels):
        body += b"0(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"tq" + bytes([i + 1])
    return PROTO2 + body + b"."


def crc_of(raw, at):
    start = raw.index(b"PK\x01\x02")
    data = bytearray(raw)
    data[start + at] ^= 0xFF
    return bytes(data)


def array_state(shape, code, raw, state=None):
    made = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), numbers(0), blob(b"b"))
    kind = call("numpy", "dtype", text(code), b"\x89", b"\x88")
    return PROTO2 + made + (state or b"(K\x01" + numbers(*shape) + kind + b"\x89" + blob(raw) + b"t") + b"b."


def headed(header):
    return struct.pack("<Q", len(header)) + header


ATTACKS = {
    # calls
    "system": PROTO4 + call("os", "system", TOUCH) + b".",
    "posix system": PROTO4 + call("posix", "system", TOUCH) + b".",
    "popen": PROTO2 + call("subprocess", "Popen", TOUCH) + b".",
    "eval": PROTO2 + call("builtins", "eval", PYTHON) + b".",
    "exec": PROTO2 + call("builtins", "exec", PYTHON) + b".",
    "old exec": PROTO2 + call("__builtin__", "exec", PYTHON) + b".",
    "import": PROTO2 + call("builtins", "__import__", text("antigravity")) + b".",
    "importlib": PROTO2 + call("importlib", "import_module", text("antigravity")) + b".",
    "getattr": PROTO2 + call("builtins", "getattr", name("torch", "float32"), text("__class__")) + b".",
    "setattr": PROTO2 + call("builtins", "setattr", name("torch", "float32"), text("a"), text("b")) + b".",
    "open": PROTO2 + call("io", "open", text("/etc/passwd")) + b".",
    "pickle in pickle": PROTO2 + call("pickle", "loads", blob(PROTO2 + call("os", "system", TOUCH) + b".")) + b".",
    "torch.load": PROTO2 + call("torch.serialization", "load", text("/etc/passwd")) + b".",
    "marshal": PROTO2 + call("marshal", "loads", blob(b"x")) + b".",
    "runpy": PROTO2 + call("runpy", "run_path", text("/tmp/x")) + b".",
    "code": PROTO2 + call("code", "interact") + b".",
    "dotted": PROTO4 + text("torch") + text("serialization.os.system") + b"\x93" + TOUCH + b"\x85R.",
    "dotted storage": PROTO4 + text("torch.storage") + text("os.system") + b"\x93" + TOUCH + b"\x85R.",
    "operator": PROTO2 + call("operator", "attrgetter", text("system")) + b".",
    "numpy load": PROTO2 + call("numpy", "load", text("/etc/passwd")) + b".",
    "runstring": PROTO2 + call("numpy.testing._private.utils", "runstring", PYTHON, b"}") + b".",
    "weakref": PROTO2 + call("torch._utils", "_import_dotted_name", text("os.system")) + b".",
    "cpp extension": PROTO2 + call("torch.utils.cpp_extension", "load_inline", PYTHON) + b".",
    "hub": PROTO2 + call("torch.hub", "load", text("a/b"), text("c")) + b".",
    "mention of eval": PROTO2 + b"](" + name("builtins", "eval") + b"e.",
    "instance opcode": b"(" + b"S'touch x'\n" + b"ios\nsystem\n.",
    "object opcode": b"(" + name("os", "system") + b"S'touch x'\no.",
    "new": PROTO2 + name("subprocess", "Popen") + b"(" + TOUCH + b"t\x81.",
    "new with keywords": PROTO4 + name("subprocess", "Popen") + b")}" + text("args") + TOUCH + b"s\x92.",
    "module with arguments": PROTO2 + name("torch.nn.modules.linear", "Linear") + numbers(10**9, 10**9) + b"\x81.",
    "module called": PROTO2 + call("torch.nn.modules.linear", "Linear", integer(10**9), integer(10**9)) + b".",
    "module by way": PROTO2 + name("torch.nn.modules.module", "torch") + b").",
    "call of a text": PROTO2 + text("eval") + PYTHON + b"\x85R.",
    "call of a call": PROTO2 + call("collections", "OrderedDict") + PYTHON + b"\x85R.",
    "arguments in a list": PROTO2 + name("collections", "OrderedDict") + b"]R.",
    "reconstructor": PROTO2 + call("copyreg", "_reconstructor", name("subprocess", "Popen"), name("builtins", "object"), b"N") + b".",
    "setstate": PROTO2 + name("subprocess", "Popen") + b")\x81}" + text("_x") + TOUCH + b"sb.",
    "setstate twice": PROTO2 + name("torch.nn.modules.module", "Module") + b")\x81}b}b.",
    "setstate of a text": PROTO2 + text("x") + b"}b.",
    "setstate of a tensor": nested(STORAGE)[:-1] + b"}b.",
    "in a torch file": legacy(call("os", "system", TOUCH), [], b""),
    "in a storage": nested(legacy(call("os", "system", TOUCH), [], b"")),
    "in the keys of a storage": nested(STORAGE[: STORAGE.rindex(PROTO2)] + PROTO2 + call("os", "system", TOUCH) + b"."),
    "in the head of a storage": nested(legacy(b"N", [], b"", head=MAGIC + PROTO2 + call("os", "system", TOUCH) + b".")),
    "in a zip": torch_zip(PROTO2 + call("os", "system", TOUCH) + b".", {}),
    "storage in a storage": nested(legacy(call("torch.storage", "_load_from_bytes", blob(STORAGE)), [], b"")),
    "storage of a tensor": nested(GOOD),
    "storage of nothing": nested(legacy(b"N", [], b"")),
    "storage of a text": PROTO2 + call("torch.storage", "_load_from_bytes", text("x")) + b".",
    "storage of a zip": nested(GOOD_ZIP),
    "hooks": nested(STORAGE, hooks=b"}K\x01K\x02s"),
    "metadata that calls": PROTO2 + b"}" + call("os", "system", TOUCH) + b"b.",
    # names
    "name that is no text": PROTO4 + b"K\x01K\x02\x93.",
    "name not in UTF-8": PROTO2 + b"c\xff\xfe\nx\n.",
    "endless name": PROTO2 + b"c" + b"a" * 5000 + b"\nb\n.",
    "long name": PROTO4 + text("a" * 400) + text("b") + b"\x93.",
    "extension 1": PROTO2 + b"\x82\x01.",
    "extension 2": PROTO2 + b"\x83\x01\x00.",
    "extension 4": PROTO2 + b"\x84\x01\x00\x00\x00.",
    "buffer out of band": b"\x80\x05\x97.",
    "read-only buffer": b"\x80\x05\x97\x98.",
    # sizes
    "laughs": laughs(12),
    "laughs by memo": laughs_by_memo(200),
    "deep lists": PROTO2 + b"]" * 5000 + b"a" * 4999 + b".",
    "deep tuples": PROTO2 + b")" + b"\x85" * 100000 + b".",
    "deep marks": PROTO2 + b"(" * 100000 + b".",
    "list in itself": PROTO2 + b"]q\x00h\x00a.",
    "dictionary in itself": PROTO2 + b"}q\x00" + text("a") + b"h\x00s.",
    "tuple in itself": PROTO2 + b"]q\x00h\x00\x85q\x01a.",
    "record in itself": PROTO2 + name("torch.nn.modules.module", "Module") + b")\x81q\x00}" + text("m") + b"h\x00sb.",
    "many operations": PROTO2 + b"N0" * 800_000 + b"N.",
    "many sets": PROTO4 + b"\x8f0" * 800_000 + b"N.",
    "memo far away": PROTO2 + b"Nj\xff\xff\xff\xff.",
    "memo never stored": PROTO2 + b"h\x05.",
    "memo negative": b"Np-1\n.",
    "memo far in text": b"N0g99999999999999999999\n.",
    "long of gigabytes": PROTO2 + b"\x8b\xff\xff\xff\x7f.",
    "long of negative size": PROTO2 + b"\x8b\xff\xff\xff\xff.",
    "long of many bytes": PROTO2 + b"\x8b" + struct.pack("<i", 100_000) + b"\x01" * 100_000 + b".",
    "text of gigabytes": PROTO4 + b"\x8d" + b"\xff" * 8 + b".",
    "bytes of gigabytes": PROTO4 + b"\x8e" + b"\xff" * 7 + b"\x7f.",
    "bytearray of gigabytes": b"\x80\x05\x96" + b"\xff" * 7 + b"\x00.",
    "frame of gigabytes": PROTO4 + b"\x95" + b"\xff" * 8 + b"N.",
    "old text of negative size": PROTO2 + b"T\xff\xff\xff\xff.",
    "digits without end": b"I" + b"9" * 100_000 + b"\n.",
    "long digits": b"L" + b"9" * 900 + b"L\n.",
    "underscored digits": b"I1_000\n.",
    "float of words": b"Fhello\n.",
    "string without quotes": b"Seval\n.",
    "string of one quote": b"S'\n.",
    "string with a strange escape": b"S'\\q'\n.",
    "string with a short escape": b"S'\\x4'\n.",
    "string with a large octal": b"S'\\777'\n.",
    "unicode with a short escape": b"V\\u12\n.",
    "text not in UTF-8": PROTO2 + b"X\x02\x00\x00\x00\xff\xfe.",
    "text of half a pair": PROTO2 + b"X\x03\x00\x00\x00\xed\xa0\x80.",
    "protocol 6": b"\x80\x06N.",
    "unknown opcode": PROTO2 + b"\xf0.",
    "nothing but a stop": PROTO2 + b".",
    "two values": PROTO2 + b"NN.",
    "open mark": PROTO2 + b"N(N.",
    "mark that is not there": PROTO2 + b"NNt.",
    "no stop": PROTO2 + b"N",
    "more after the stop": PROTO2 + b"N.N.",
    "key that is a list": PROTO2 + b"}]K\x01s.",
    "key that is a dictionary": PROTO2 + b"}(}K\x01u.",
    "set of lists": PROTO4 + b"\x8f(]\x90.",
    "odd items": PROTO2 + b"}(K\x01u.",
    "items of a tuple": PROTO2 + b")K\x01K\x01s.",
    "append to a dictionary": PROTO2 + b"}K\x01a.",
    "add to a list": PROTO4 + b"](K\x01\x90.",
    # persistent ids
    "id outside a torch file": PROTO2 + pid("FloatStorage", "0", 4) + b".",
    "id in text": PROTO2 + b"Pstorage\n.",
    "id that is no storage": legacy(b"(" + text("module") + text("x") + b"tQ", [], b""),
    "id of a text": legacy(text("storage") + b"Q", [], b""),
    "id of an unknown type": legacy(pid("float32", "0", 4), ["0"], ONE),
    "id of a class elsewhere": legacy(b"(" + text("storage") + b"N" + text("0") + text("cpu") + b"K\x04NtQ", ["0"], ONE),
    "id with a key that is a number": legacy(b"(" + text("storage") + name("torch", "FloatStorage") + b"K\x00" + text("cpu") + b"K\x04NtQ", ["0"], ONE),
    "id with a negative length": legacy(pid("FloatStorage", "0", -4), ["0"], ONE),
    "id with a huge length": legacy(pid("FloatStorage", "0", 2**62), ["0"], ONE),
    "id with a length that lies": legacy(pid("FloatStorage", "0", 5), ["0"], ONE),
    "id of terabytes": legacy(pid("FloatStorage", "0", 2**40), ["0"], ONE),
    "one key of two types": legacy(b"(" + pid("FloatStorage", "0", 4) + pid("IntStorage", "0", 4) + b"t", ["0"], ONE),
    "one key of two lengths": legacy(b"(" + pid("FloatStorage", "0", 4) + pid("FloatStorage", "0", 2) + b"t", ["0"], ONE),
    "view outside": legacy(pid("FloatStorage", "0", 4, view=("v", 3, 2)), ["0"], ONE),
    "view with overflow": legacy(pid("FloatStorage", "0", 4, view=("v", 2**59, 2**59)), ["0"], ONE),
    # tensors
    "reaches too far": nested(STORAGE, size=(5,)),
    "offset too far": nested(STORAGE, offset=3, size=(2,)),
    "negative offset": nested(STORAGE, offset=-1),
    "negative stride": nested(STORAGE, offset=3, stride=(-1,)),
    "negative size": nested(STORAGE, size=(-2,)),
    "stride too far": nested(STORAGE, stride=(4,)),
    "overflow": nested(STORAGE, size=(2**32, 2**32), stride=(2**32, 1)),
    "overflow to zero": nested(STORAGE, size=(2**59, 32), stride=(32, 1)),
    "a trillion of one": nested(STORAGE, size=(2**40,), stride=(0,)),
    "overlap": nested(STORAGE, size=(2, 2), stride=(1, 1)),
    "empty of impossible size": nested(STORAGE, size=(2**40, 0, 2**40), stride=(1, 1, 1)),
    "more strides than sizes": nested(STORAGE, size=(2,), stride=(1, 1)),
    "hundred dimensions": nested(STORAGE, size=(1,) * 100, stride=(1,) * 100),
    "size of texts": PROTO2 + call("torch._utils", "_rebuild_tensor_v2", call("torch.storage", "_load_from_bytes", blob(STORAGE)), b"K\x00", b"(" + text("2") + b"t", numbers(1), b"\x89", b"}") + b".",
    "size of booleans": PROTO2 + call("torch._utils", "_rebuild_tensor_v2", call("torch.storage", "_load_from_bytes", blob(STORAGE)), b"K\x00", b"\x88\x85", numbers(1), b"\x89", b"}") + b".",
    "tensor of a tensor": PROTO2 + tensor_of(nested(STORAGE)[2:-1]) + b".",
    "tensor of nothing": PROTO2 + call("torch._utils", "_rebuild_tensor_v2") + b".",
    "parameter of a text": PROTO2 + call("torch._utils", "_rebuild_parameter", text("x"), b"\x88", b"}") + b".",
    "one storage a thousand times": PROTO2 + blob(LARGE) + b"q\x000](" + call("torch.storage", "_load_from_bytes", b"h\x00") * 1000 + b"e.",
    # torch files of the old format
    "another magic": patched(nested(STORAGE), MAGIC[4:14], MAGIC[4:14][::-1]),
    "another version": patched(nested(STORAGE), b"M\xe9\x03", b"M\xea\x03"),
    "big endian": nested(legacy(pid("FloatStorage", "0", 4), ["0"], ONE, head=MAGIC + PROTO2 + b"M\xe9\x03." + PROTO2 + b"}" + text("little_endian") + b"\x89s.")),
    "count that lies": legacy(tensor_of(pid("FloatStorage", "0", 4)), ["0"], patched(ONE, struct.pack("<q", 4), struct.pack("<q", 2))),
    "negative count": legacy(tensor_of(pid("FloatStorage", "0", 4)), ["0"], patched(ONE, struct.pack("<q", 4), struct.pack("<q", -4))),
    "cut in the numbers": GOOD[:-3],
    "cut in the count": GOOD[:-20],
    "bytes after the numbers": GOOD + b"\0",
    "keys missing": legacy(tensor_of(pid("FloatStorage", "0", 4)), [], b""),
    "key twice": legacy(tensor_of(pid("FloatStorage", "0", 4)), ["0", "0"], ONE + ONE),
    "key of another": legacy(tensor_of(pid("FloatStorage", "0", 4)), ["1"], ONE),
    "keys that are numbers": patched(GOOD, b"](" + text("0") + b"e", b"](K\x00e"),
    "boolean that is 2": legacy(pid("BoolStorage", "0", 4), ["0"], struct.pack("<q", 4) + b"\x00\x01\x02\x01"),
    # zips
    "compressed": torch_zip(BODY, {"0": FOUR}, compression=zipfile.ZIP_DEFLATED),
    "zip bomb": torch_zip(BODY, {"0": b"\0" * 10**7}, compression=zipfile.ZIP_DEFLATED),
    "folder outside": torch_zip(BODY, {"0": FOUR}, renamed("archive/../../0")),
    "absolute name": torch_zip(BODY, {"0": FOUR}, renamed("/etc/0")),
    "name with a drive": torch_zip(BODY, {"0": FOUR}, renamed("C:/0")),
    "name with a backslash": torch_zip(BODY, {"0": FOUR}, renamed("archive\\data\\0")),
    "link": torch_zip(BODY, {"0": FOUR}, linked),
    "twice the same name": torch_zip(BODY, {"0": FOUR}, lambda e: [*e, ("archive/data/0", FOUR)]),
    "two folders": torch_zip(BODY, {"0": FOUR}, lambda e: [*e, ("other/data/0", FOUR)]),
    "no pickle": torch_zip(BODY, {"0": FOUR}, lambda e: e[1:]),
    "storage missing": torch_zip(BODY, {}),
    "storage too short": torch_zip(BODY, {"0": FOUR[:-1]}),
    "storage too long": torch_zip(BODY, {"0": FOUR + b"\0"}),
    "storage elsewhere": torch_zip(PROTO2 + tensor_of(pid("FloatStorage", "../data.pkl", 4)) + b".", {"0": FOUR}),
    "wrong CRC": crc_of(GOOD_ZIP, 16),
    "damaged numbers": patched(GOOD_ZIP, FOUR, FOUR[::-1]),
    "size that lies": crc_of(GOOD_ZIP, 24),
    "encrypted": crc_of(GOOD_ZIP, 8),
    "cut off": GOOD_ZIP[:-30],
    "bytes after the end": GOOD_ZIP + b"abc",
    "no end": GOOD_ZIP[: GOOD_ZIP.index(b"PK\x05\x06")],
    "end that lies": GOOD_ZIP[:-10] + struct.pack("<LLH", 10, 2**31, 0),
    "program": torch_zip(BODY, {"0": FOUR}, lambda e: [*e, ("archive/code/__torch__.py", b"import os")]),
    "big endian zip": torch_zip(BODY, {"0": FOUR}, lambda e: [(n, b"big" if n.endswith("order") else c) for n, c in e]),
    "more after the pickle": torch_zip(BODY + b"x", {"0": FOUR}),
    # NumPy
    "array of objects": array_state((1,), "O8", b"12345678"),
    "array of records": array_state((1,), "V8", b"12345678"),
    "array too short": array_state((4,), "f4", b"1234"),
    "array of overflow": array_state((2**32, 2**32), "f4", b""),
    "array of another class": PROTO2 + call("numpy.core.multiarray", "_reconstruct", name("numpy", "matrix"), numbers(0), blob(b"b")) + b".",
    "array of strange state": array_state((1,), "f4", b"1234", state=b"(K\x01K\x02t"),
    "dtype of fields": PROTO2 + call("numpy", "dtype", text("f4,f4"), b"\x89", b"\x88") + b".",
    "dtype with metadata": PROTO2 + call("numpy", "dtype", text("f4"), b"\x89", b"\x88") + b"(K\x03" + text("<") + b"}" + b"NNK\x01K\x01K\x00tb.",
    "scalar too short": PROTO2 + call("numpy.core.multiarray", "scalar", call("numpy", "dtype", text("f4"), b"\x89", b"\x88"), blob(b"12")) + b".",
    "encode in another codec": PROTO2 + call("_codecs", "encode", text("x"), text("zip")) + b".",
    # other files
    "empty": b"",
    "words": b"hello world, this is not a file of weights\n",
    "picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    "zeros": b"\0" * 1000,
    "tar": b"x" * 257 + b"ustar" + b"\0" * 300,
    "safetensors with a long header": struct.pack("<Q", 2**60) + b"{}",
    "safetensors without a header": struct.pack("<Q", 4) + b"{abc",
    "safetensors that reach outside": headed(b'{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,396]}}'),
    "safetensors with a hole": headed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}') + b"\0" * 12,
    "safetensors cut short": save({"a": torch.zeros(8)})[:-5],
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused(write, attack):
    path = write(ATTACKS[attack])
    begin = time.perf_counter()
    with pytest.raises(FormatError) as refused:
        watched(foreign.read, path)
    assert time.perf_counter() - begin < 20  # the slowest takes 0.3 s on an idle machine
    message = str(refused.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500
    with contextlib.suppress(FormatError):
        watched(foreign.inspect, path)


REASONS = {  # of the attacks that could be refused for something else first
    "laughs": "unfolds to more than",
    "laughs by memo": "unfolds to more than|nested more than",
    "deep lists": "nested more than 200 deep",
    "deep tuples": "nested more than 200 deep",
    "deep marks": "open marks",
    "list in itself": "contains itself",
    "record in itself": "contains itself",
    "many operations": "more operations than a file of",
    "many sets": "more operations than a file of",
    "memo far away": "LONG_BINGET: nothing",
    "memo far in text": "refers to the stored value b'9999",
    "mark that is not there": "TUPLE finds the stack empty",
    "no stop": "ends too early",
    "in a storage": "a storage in it imports os.system",
    "in the keys of a storage": "a storage in it imports os.system",
    "in the head of a storage": "a storage in it imports os.system",
    "in a zip": "imports os.system",
    "storage in a storage": "within a torch file within",
    "one storage a thousand times": "needs more storage bytes",
    "new": "imports subprocess.Popen",
    "module with arguments": "makes an object of class torch.nn.modules.linear.Linear",
    "hooks": "tensor with hooks",
    "id of terabytes": "announces a storage of 4,398,046,511,104 bytes",
    "id with a length that lies": "4 numbers that was announced with 5",
    "negative stride": "-1 for the strides",
    "overflow to zero": "reaches number 18,446,744,073,709,551,615",
    "a trillion of one": "overlaps itself",
    "overlap": "overlaps itself",
    "reaches too far": "reaches number 4 of a storage of 4",
    "cut in the count": "announces 8 bytes where",
    "count that lies": "storage of 2 numbers that was announced with 4",
    "boolean that is 2": "neither 0 nor 1",
    "folder outside": "member with the name archive/../../0",
    "link": "which is a link",
    "twice the same name": "two members of the name",
    "damaged numbers": "archive/data/0 damaged",
    "zip bomb": "compressed",
    "encrypted": "encrypted",
    "end that lies": "outside the file",
    "storage elsewhere": "lacks the storage ../data.pkl",
    "array of objects": "not plain numbers: O8",
    "array of overflow": "of 0 bytes",
    "string of one quote": "without its quotes",
    "safetensors that reach outside": "SafetensorError",
    "safetensors with a hole": "SafetensorError",
}


@pytest.mark.parametrize("attack", REASONS)
def test_attacks_are_refused_for_what_they_are(write, attack):
    with pytest.raises(FormatError, match=REASONS[attack]):
        foreign.read(write(ATTACKS[attack]))


def test_there_are_at_least_a_hundred_attacks():
    assert len(ATTACKS) >= 100 and len(set(ATTACKS.values())) == len(ATTACKS)


@pytest.mark.parametrize(
    "state",
    [
        b"N",
        b"}" + text("_modules") + b"K\x01s",
        b"}(" + text("_parameters") + b"}" + text("_modules") + b"}" + text("m") + b"K\x01su",
        b"}" + text("_parameters") + b"}" + text("w") + text("x") + b"ss",
        b"}(" + text("_parameters") + b"}" + text("_init_kwargs") + b"]u",
    ],
)
def test_modules_of_no_form(write, state):
    meta = b"}(" + text("type") + text("class") + text("class_name") + text("Net") + text("state") + state + b"u"
    path = write(
        PROTO2 + b"}" + text("ema") + call("torch_utils.persistence", "_reconstruct_persistent_obj", meta) + b"s."
    )
    with pytest.raises(FormatError, match=str(path)):
        watched(published.modules, path)


def test_modules_that_take_no_shape(write):
    for meta in (b"K\x01", b"}", b"}" + text("type") + text("function") + b"s"):
        raw = PROTO2 + call("torch_utils.persistence", "_reconstruct_persistent_obj", meta) + b"."
        with pytest.raises(FormatError):
            watched(published.modules, write(raw))


def test_missing_files_and_folders(tmp_path):
    for function in (foreign.read, foreign.inspect, foreign.tensors, published.modules):
        with pytest.raises(FileNotFoundError, match="no such file"):
            function(tmp_path / "absent")
        with pytest.raises(FormatError, match="is no regular file"):
            function(tmp_path)


def test_what_is_foreign(write, tmp_path):
    for raw in ff.samples().values():
        assert foreign.is_foreign(write(raw))
    assert not foreign.is_foreign(write(b"\x89PNG\r\n\x1a\n"))
    assert not foreign.is_foreign(tmp_path)


def test_hashes_cannot_be_chosen(write):
    """Ten thousand keys that collide in Python's own dictionary would take minutes."""
    modulus = 2**61 - 1  # hash(n) = n mod this
    colliding = {i * modulus * 2**16: 0 for i in range(3)}
    raw = (
        PROTO2
        + b"}("
        + b"".join(b"\x8a\x0c" + (i * modulus).to_bytes(12, "little", signed=True) + b"K\x00" for i in range(30000))
        + b"u."
    )
    assert len({hash(k) for k in colliding}) == 1
    begin = time.perf_counter()
    assert len(foreign.read(write(raw))) == 30000
    assert time.perf_counter() - begin < 10


def test_crc_of_zips_is_that_of_zlib(write):
    """The checksum is looked at where Python's own reader looks at it."""
    good = bytearray(GOOD_ZIP)
    at = good.index(b"PK\x01\x02", good.index(b"PK\x01\x02", good.index(b"PK\x01\x02") + 1) + 1) + 16
    assert struct.unpack_from("<L", good, at)[0] == zlib.crc32(FOUR)
    struct.pack_into("<L", good, at, zlib.crc32(FOUR) ^ 1)
    with pytest.raises(FormatError, match="archive/data/0 damaged"):
        foreign.read(write(bytes(good)))


# ------------------------------------------------------------------ damaged at random


def fuzzed(n, seed):
    code = f"import foreign_files; foreign_files.fuzz({n}, {seed})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def check_fuzzed(n, seed):
    found = fuzzed(n, seed)
    assert found["other"] == [] and found["executed"] == [] and found["slow"] == []
    assert found["peak_growth"] < 2**30
    assert found["read"] + found["refused"] == n and found["refused"] > n / 2


def test_two_thousand_damaged_files():
    check_fuzzed(2_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_thousand_damaged_files():
    check_fuzzed(20_000, seed=2)
