"""Files in the published form, written by classes of our own: what the reader of foreign weights is tested with.

A module pickles as a call of torch_utils.persistence._reconstruct_persistent_obj(meta) that carries Python source, as
the snapshots of EDM and EDM2 do. `CANARY` is that source: who executes it leaves a mark.
"""

import pickle
import sys
import types

import torch

CANARY = """
import os, sys
open(os.environ["ELUCIDIFF_CANARY"], "w").write("executed")
sys._elucidiff_canary = True
"""


class EasyDict(dict):
    """A dictionary, as pickled by name."""


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"


def _reconstruct_persistent_obj(meta):
    """What the reference loader does: execute the source, make the object, give it the state."""
    module = types.ModuleType("embedded")
    exec(meta.module_src if hasattr(meta, "module_src") else meta["module_src"], module.__dict__)
    made = Persistent.__new__(getattr(module, meta["class_name"], Persistent))
    made.__dict__.update(meta["state"])
    return made


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent(torch.nn.Module):
    """A module that pickles with its source."""

    source = CANARY

    def __init__(self, class_name, args=(), kwargs=None):
        super().__init__()
        self.__dict__["_class_name"] = class_name
        self._init_args = args
        self._init_kwargs = EasyDict(kwargs or {})

    def __reduce__(self):
        state = {k: v for k, v in self.__dict__.items() if k != "_class_name"}
        meta = EasyDict(type="class", version=6, module_src=self.source, class_name=self._class_name, state=state)
        return _reconstruct_persistent_obj, (meta,)


class fake_modules:
    """While open, pickle finds the names torch_utils.persistence and dnnlib.util."""

    def __enter__(self):
        for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
        sys.modules["dnnlib.util"].EasyDict = EasyDict

    def __exit__(self, *_):
        for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
            del sys.modules[name]


def dumps(value, protocol=4):
    with fake_modules():
        return pickle.dumps(value, protocol=protocol)


BUFFERS = ("resample_filter", "freqs", "phases", "u")


def module(weights, class_name, args=(), kwargs=None, classes=None, at=""):
    """A tree of persistent modules that holds a flat state dict; `classes` maps a path to (class, kwargs)."""
    made = Persistent(class_name, args, kwargs)
    inner = {}
    for name, tensor in weights.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = tensor
        elif head in BUFFERS:
            made.register_buffer(head, tensor)
        else:
            made.register_parameter(head, torch.nn.Parameter(tensor))
    for head, part in inner.items():
        path = f"{at}.{head}".strip(".")
        if head in ("enc", "dec"):
            child = torch.nn.ModuleDict({k: module(v, "UNetBlock") for k, v in grouped(part).items()})
        else:
            child = module(part, *(classes or {}).get(path, ("Layer", (), {})), classes=classes, at=path)
        made.add_module(head, child)
    return made


def grouped(weights):
    groups = {}
    for name, tensor in weights.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = tensor
    return groups


OWN = {"sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M", "epsilon_t", "C_1", "C_2", "use_fp16",
       "img_channels", "model_type", "logvar_channels"}  # fmt: skip


def precond(class_name, arguments, weights):
    """The module of a golden case: the preconditioning with its network, both with their arguments."""
    inner_args = {k: v for k, v in arguments.items() if k not in OWN}
    inner_args |= {"in_channels": arguments["img_channels"], "out_channels": arguments["img_channels"]}
    if class_name == "Precond":
        inner_args = {k: v for k, v in arguments.items() if k not in OWN} | {"img_channels": arguments["img_channels"]}
    name = "UNet" if class_name == "Precond" else arguments["model_type"]
    classes = {"model": (name, (), inner_args), "unet": (name, (), inner_args)}
    return module(weights, class_name, (), arguments, classes)


def snapshot(class_name, arguments, weights, protocol=4):
    """The bytes of a snapshot, as the training code writes it."""
    return dumps(
        {
            "ema": precond(class_name, arguments, weights),
            "loss_fn": _loss(),
            "augment_pipe": None,
            "dataset_kwargs": EasyDict(
                class_name="training.dataset.ImageFolderDataset", path="x.zip", use_labels=False
            ),
        },
        protocol,
    )


class _Loss(Persistent):
    def __reduce__(self):
        meta = EasyDict(type="class", version=6, module_src=self.source, class_name="EDMLoss",
                        state={"P_mean": -1.2, "P_std": 1.2, "_init_args": (), "_init_kwargs": EasyDict()})  # fmt: skip
        return _reconstruct_persistent_obj, (meta,)


def _loss():
    return _Loss("EDMLoss")


# ---- fuzzing


def sample_weights():
    """A few small tensors under the names of a published network."""
    generator = torch.Generator().manual_seed(0)
    names = [
        "model.enc.4x4_conv.weight",
        "model.enc.4x4_conv.bias",
        "model.map_layer0.weight",
        "model.dec.4x4_up.skip.resample_filter",
    ]
    return {name: torch.randn(2, 3, generator=generator) for name in names}


def samples():
    """Good files of every format, by name."""
    import io

    import numpy as np
    from safetensors.torch import save

    weights = sample_weights()
    arguments = {
        "img_resolution": 4,
        "img_channels": 3,
        "model_type": "SongUNet",
        "channel_mult": [1, 2],
        "sigma_max": float("inf"),
    }
    tree = {"state_dict": weights, "step": np.int64(5), "array": np.arange(6.0).reshape(2, 3), "set": {1, 2},
            "mixed": (1, -2.5, None, True, b"bytes", "text", 2**70), "half": torch.ones(3).half(),
            "flags": torch.tensor([True, False]), "module": torch.nn.Linear(2, 2).state_dict()}  # fmt: skip
    files = {f"snapshot{p}": snapshot("EDMPrecond", arguments, weights, p) for p in (2, 4)}
    files |= {f"pickle{p}": pickle.dumps(tree, protocol=p) for p in range(6)}
    for name, new in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(tree, buffer, _use_new_zipfile_serialization=new)
        files[name] = buffer.getvalue()
    files["safetensors"] = save(weights)
    return files


def mutated(raw, rng, others):
    """The bytes with one to four random damages."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(11)
        if not data:
            break
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.choice([1, 2, 8, 100])]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 30]))
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            data[at : at + 8] = rng.choice(
                [b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 8, (1 << 33).to_bytes(8, "little")]
            )
        elif kind == 6:
            data[at : at + 4] = rng.choice([b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 4, b"\0\0\0\x10"])
        elif kind == 7:
            end = at + rng.randrange(1, 300)
            data[at:at] = data[at:end] * rng.choice([1, 2, 20])
        elif kind == 8:
            other = others[rng.randrange(len(others))]
            start = rng.randrange(len(other))
            data[at : at + rng.choice([0, 10, 100])] = other[start : start + rng.randrange(1, 300)]
        elif kind == 9:
            data[at] = rng.choice(
                b"().0123IJKLMNPQRSTUVXabcdeghijloprstuq]}\x80\x81\x85\x86\x87\x88\x8a\x8b\x8e\x8f\x90\x91\x92\x93\x94\x95\x96"
            )
        else:
            for name in (
                b"collections",
                b"torch._utils",
                b"torch.storage",
                b"_load_from_bytes",
                b"FloatStorage",
                b"OrderedDict",
            ):
                if name in data and rng.random() < 0.3:
                    start = data.index(name)
                    data[start : start + len(name)] = rng.choice(
                        [b"os", b"builtins", b"system", b"eval", b"exec", b"torch", b"numpy"]
                    )
    return bytes(data)


def rezipped(raw, rng, others):
    """A torch zip whose data.pkl or a storage is damaged, with the CRCs made right again."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("data.pkl") or rng.random() < 0.05:
                content = mutated(content, rng, others)
            new.writestr(info.filename, content)
    return buffer.getvalue()


EXECUTION = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "exec", "compile", "import", "pickle.find_class",
             "os.remove", "os.rename", "socket.connect", "os.putenv", "ctypes.dlopen")  # fmt: skip


def fuzz(n, seed=0):
    """Read n damaged files and say what happened: prints JSON. Run in a process of its own."""
    import json
    import random
    import resource
    import tempfile
    import time
    from pathlib import Path

    from elucidiff import foreign
    from elucidiff.errors import FormatError
    from elucidiff.foreign import published

    rng = random.Random(seed)
    files = samples()
    raws = list(files.values())
    seen, watching = [], [False]
    sys.addaudithook(
        lambda event, args: seen.append((event, str(args)[:200])) if watching[0] and event in EXECUTION else None
    )
    outcome = {"read": 0, "refused": 0, "other": [], "slow": [], "executed": [], "peak_growth": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        for raw in raws:  # whatever imports lazily has done so
            path.write_bytes(raw)
            foreign.read(path)
            foreign.inspect(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for i in range(n):
            name = rng.choice(list(files))
            damage = rezipped if name == "zip" and rng.random() < 0.8 else mutated
            bad = damage(files[name], rng, raws)
            path.unlink()  # a mapped file keeps its bytes
            path.write_bytes(bad)
            begin = time.perf_counter()
            watching[0] = True
            try:
                value = foreign.inspect(path) if i % 4 == 0 else foreign.read(path)
                if i % 4 and name.startswith("snapshot"):
                    published.modules_in(value)
                outcome["read"] += 1
            except FormatError:
                outcome["refused"] += 1
            except BaseException as error:
                outcome["other"].append(f"{name} {seed}/{i}: {error!r}"[:300])
                Path(f"/tmp/fuzz-{seed}-{i}").write_bytes(bad)
            watching[0] = False
            if time.perf_counter() - begin > 2:
                outcome["slow"].append(f"{name} {seed}/{i}: {time.perf_counter() - begin:.1f} s")
        outcome["peak_growth"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    outcome["executed"] = [str(s) for s in seen]
    print(json.dumps(outcome))
