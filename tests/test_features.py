"""Extractors whose weights or code come from elsewhere: fetched, of transformers, by the user's own functions."""

import hashlib
import http.server
import json
import math
import sys
import threading
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.nn import functional as F

from elucidiff import download, metrics
from elucidiff.cli.main import main
from elucidiff.cli.options import chosen_features
from elucidiff.data import from_uint8
from elucidiff.errors import FormatError, MissingExtraError
from elucidiff.metrics import DINOv2, Inception, dinov2, extractor_hash, inception, named_features
from elucidiff.metrics import inception_network as net


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing of a test lands in the home folder, and no extractor is named by it."""
    monkeypatch.setenv("ELUCIDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ELUCIDIFF_INCEPTION", raising=False)
    return tmp_path / "cache"


def images(n: int, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    levels = np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)
    return from_uint8(torch.from_numpy(levels))


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


# --- Inception's weights, fetched -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content() -> bytes:
    """A file of weights of the network."""
    return save({name: torch.full(shape, 0.01) for name, shape in net.published_shapes().items()})


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(content, monkeypatch):
    """Serves the weights in the place of the published address; their SHA-256 counts as the published one."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.content, running.asked = content, []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(inception, "URL", f"http://127.0.0.1:{running.server_address[1]}/weights.pth")
        monkeypatch.setattr(inception, "PUBLISHED", hashlib.sha256(content).hexdigest())
        yield running
        running.shutdown()
        thread.join()


def left(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_weights_are_fetched_once_and_only_when_asked(server, cache, content, tmp_path):
    with pytest.raises(ValueError, match="inception:download, which fetches 96 MB once"):
        chosen_features("inception")
    with pytest.raises(FileNotFoundError, match="fetched from there by: --features inception:download"):
        Inception(str(tmp_path / "none.pth"))
    assert server.asked == []
    found = Inception.download()
    place = Path(found.weights)
    assert (found.level, found.is_fid, found.fd_name) == (2048, True, "FID")
    assert place.read_bytes() == content and place.is_relative_to(cache) and left(cache) == ["weights.pth"]
    assert chosen_features("inception:download,level=768") == Inception.download(768) == Inception(str(place), 768)
    assert server.asked == ["/weights.pth"]
    assert Inception.download(folder=tmp_path / "own").weights.startswith(str(tmp_path / "own"))
    with pytest.raises(ValueError, match="level: got 5"):
        Inception.download(5)
    with pytest.raises(ValueError, match="got a.pth and download"):
        chosen_features("inception:a.pth,download")
    assert len(server.asked) == 2


def test_another_file_never_takes_the_name(server, cache, content):
    server.content = content[:-4] + b"\0\0\0\0"
    with pytest.raises(FormatError, match=f"SHA-256 {hashlib.sha256(server.content).hexdigest()}, not "):
        Inception.download()
    assert left(cache) == [] and len(server.asked) == 1
    server.content = content
    place = Path(Inception.download().weights)
    place.write_bytes(b"damaged since")
    assert Path(Inception.download().weights) == place and place.read_bytes() == content


def test_without_a_network_one_line_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/weights.pth")  # nothing listens there
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    code, out, err = run(capsys, "evaluate", tmp_path / "x.npy", tmp_path / "x.npy", "--features", "inception:download")
    assert (code, out) == (1, "") and len(err.splitlines()) <= 2, err
    assert "127.0.0.1:9" in err and "refused" in err and "name the file: inception:FILE" in err


def test_a_given_hash_is_compared_for_any_address(server, tmp_path):
    server.content = b"a few bytes"
    digest = hashlib.sha256(server.content).hexdigest()
    assert download.fetched(inception.URL, tmp_path, digest=digest).read_bytes() == server.content
    with pytest.raises(FormatError, match="not 0000; it was removed"):
        download.fetched(inception.URL, tmp_path / "other", digest="0000")
    assert left(tmp_path / "other") == []


# --- DINOv2 ---------------------------------------------------------------------------------------------------

HEADS, WIDTH, DEPTH, GRID = 2, 12, 2, 37


def tiny(folder: Path, seed: int = 0, **changed) -> Path:
    """A folder as the hub has them: 2 blocks, 12 features, positions of 37 x 37 patches as the published ones."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + GRID**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        block = {f"attention.attention.{n}": (WIDTH, WIDTH) for n in ("query", "key", "value")}
        block |= {
            "attention.output.dense": (WIDTH, WIDTH),
            "mlp.fc1": (4 * WIDTH, WIDTH),
            "mlp.fc2": (WIDTH, 4 * WIDTH),
        }
        for name, shape in (block | {"norm1": (WIDTH,), "norm2": (WIDTH,)}).items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
        shapes |= {f"encoder.layer.{i}.layer_scale{j}.lambda1": (WIDTH,) for j in (1, 2)}
    weights = {n: torch.from_numpy(0.5 * rng.standard_normal(s)).float() for n, s in shapes.items()}
    weights["embeddings.patch_embeddings.projection.weight"] /= 14
    config = {"model_type": "dinov2", "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    config |= {"image_size": 518, "patch_size": 14, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "hidden_act": "gelu"}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | changed))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def class_token(w: dict[str, torch.Tensor], x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A vision transformer (Dosovitskiy et al. 2021) with layer scales, written from the formulas."""

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    n, _, height, width = x.shape
    patches = x.reshape(n, 3, height // 14, 14, width // 14, 14).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 588)
    kernel = w["embeddings.patch_embeddings.projection.weight"].reshape(WIDTH, 588)
    tokens = patches @ kernel.T + w["embeddings.patch_embeddings.projection.bias"]
    h = torch.cat([w["embeddings.cls_token"].expand(n, 1, WIDTH), tokens], dim=1) + positions
    for i in range(DEPTH):
        at, y = f"encoder.layer.{i}", norm(h, f"encoder.layer.{i}.norm1")
        q, k, v = (
            linear(y, f"{at}.attention.attention.{m}").reshape(n, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for m in ("query", "key", "value")
        )
        mixed = (q @ k.mT / math.sqrt(WIDTH / HEADS)).softmax(-1) @ v
        mixed = linear(mixed.transpose(1, 2).reshape(n, -1, WIDTH), f"{at}.attention.output.dense")
        h = h + w[f"{at}.layer_scale1.lambda1"] * mixed
        z = linear(norm(h, f"{at}.norm2"), f"{at}.mlp.fc1")
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        h = h + w[f"{at}.layer_scale2.lambda1"] * linear(z, f"{at}.mlp.fc2")
    return norm(h, "layernorm")[:, 0]


def stand_in() -> types.ModuleType:
    """As much of transformers as is used: Dinov2Model.from_pretrained, and the switch of its bars."""

    class Dinov2Model(nn.Module):
        def __init__(self, folder):
            super().__init__()
            self.config = types.SimpleNamespace(**json.loads((folder / "config.json").read_text()))
            self.w = load_file(folder / "model.safetensors")
            self.embeddings = nn.Module()
            self.embeddings.position_embeddings = nn.Parameter(self.w["embeddings.position_embeddings"])

        @classmethod
        def from_pretrained(cls, folder, *, use_safetensors, trust_remote_code, local_files_only, output_loading_info):
            assert (use_safetensors, trust_remote_code, local_files_only, output_loading_info) == (
                True,
                False,
                True,
                True,
            )
            torch.rand(3)  # initial weights
            made = cls(Path(folder))
            missing = {f"encoder.layer.{i}.norm1.bias" for i in range(made.config.num_hidden_layers)} - set(made.w)
            return made, {"missing_keys": missing, "mismatched_keys": set(), "unexpected_keys": set()}

        def forward(self, pixel_values):
            w = {name: tensor.to(pixel_values) for name, tensor in self.w.items()}
            token = class_token(w, pixel_values, self.embeddings.position_embeddings)
            return types.SimpleNamespace(last_hidden_state=torch.stack([token, token + 1], dim=1))

    module = types.ModuleType("transformers")
    module.Dinov2Model = Dinov2Model
    bars = types.SimpleNamespace(shown=True, is_progress_bar_enabled=lambda: bars.shown)
    bars.disable_progress_bar = lambda: setattr(bars, "shown", False)
    bars.enable_progress_bar = lambda: setattr(bars, "shown", True)
    module.utils = types.SimpleNamespace(logging=bars)
    return module


@pytest.fixture(params=["stand-in", "installed"])
def library(request, monkeypatch):
    """The networks' library: one that consists of what is used, and transformers itself where it is installed."""
    dinov2._loaded.cache_clear()
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "transformers", stand_in())
    elif find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    return sys.modules.get("transformers")


def cubic(u: float) -> float:
    """Keys' kernel (1981) with a = -3/4."""
    u, a = abs(u), -0.75
    return (a + 2) * u**3 - (a + 3) * u**2 + 1 if u <= 1 else a * (u**3 - 5 * u**2 + 8 * u - 4) if u < 2 else 0.0


def rescaled(table: np.ndarray, side: int) -> np.ndarray:
    """Positions (1 + M^2, d) for side x side patches: each axis sampled at (j + 1/2) M / (side + 0.1) - 1/2."""
    old = math.isqrt(len(table) - 1)
    rows = np.zeros((side, old))
    for j in range(side):
        at = (j + 0.5) * old / (side + 0.1) - 0.5
        for i in range(math.floor(at) - 1, math.floor(at) + 3):
            rows[j, min(max(i, 0), old - 1)] += cubic(at - i)
    grid = np.einsum("ai,bj,ijd->abd", rows, rows, table[1:].reshape(old, old, -1))
    return np.concatenate([table[:1], grid.reshape(side * side, -1)])


def test_positions_are_rescaled_as_the_published_code_does_it():
    table = np.random.default_rng(0).standard_normal((1 + 37**2, 3))
    found = dinov2.positions(torch.from_numpy(table)[None], 16)[0].numpy()
    assert np.allclose(found, rescaled(table, 16), rtol=0, atol=1e-12)
    assert not np.allclose(found[1:], F.interpolate(torch.from_numpy(table[1:].T.reshape(1, 3, 37, 37)), size=16, mode="bicubic").flatten(2)[0].T, atol=0.01)  # fmt: skip
    same = torch.randn(1, 257, 3)
    assert torch.equal(dinov2.positions(same, 16), same)


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 3), (300, 300, 3), (32, 48, 1)])
def test_images_are_resized_as_pillow_does_it_and_normalised(height, width, channels):
    x = images(1, channels, height, width)
    levels = ((x[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(levels if channels == 3 else levels[..., 0]).resize((224, 224), Image.Resampling.BICUBIC)
    expected = np.asarray(picture.convert("RGB")).astype(float).transpose(2, 0, 1)
    mean, std = np.array([0.485, 0.456, 0.406])[:, None, None], np.array([0.229, 0.224, 0.225])[:, None, None]
    off = (dinov2.pixels(x)[0].double().numpy() * std + mean) * 255 - expected
    assert np.abs(off).max() < 1.01 and (np.abs(off) > 0.01).mean() < 0.02  # Pillow's sums are of integers


def test_the_feature_is_the_class_token_after_the_last_norm(library, tmp_path):
    folder, x = tiny(tmp_path / "tiny"), images(6, 3, 20, 28)
    state = torch.get_rng_state()
    extractor = DINOv2(str(folder))
    features = extractor.features(x)
    assert torch.equal(torch.get_rng_state(), state)
    w = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    table = torch.from_numpy(rescaled(w["embeddings.position_embeddings"][0].numpy(), 16))
    expected = class_token(w, dinov2.pixels(x).double(), table)
    assert features.dtype == torch.float64 and features.shape == (6, WIDTH)
    assert (features - expected).abs().max() < 2e-5 and expected.std() > 0.1
    for part in (slice(0, 1), slice(2, 5), slice(4, 6)):
        assert torch.equal(features[part], extractor.features(x[part]))
    grey = images(2, 1)
    assert torch.equal(extractor.features(grey), extractor.features(grey.expand(-1, 3, -1, -1)))


def test_it_says_what_it_is(library, tmp_path):
    folder = tiny(tmp_path / "tiny")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    made = DINOv2(str(folder))
    assert str(made) == f"dinov2 {WIDTH} {digest[:8]}" and made.dim((3, 5, 5)) == WIDTH
    assert made.fd_name == f"FD-DINOv2 ({WIDTH} features)"
    assert made.to_dict() == {"kind": "dinov2", "weights": str(folder), "sha256": digest}
    assert metrics.Features.from_dict(made.to_dict()) == made == chosen_features(f"dinov2:{folder}")
    moved = DINOv2(str(tiny(tmp_path / "elsewhere")))
    other = DINOv2(str(tiny(tmp_path / "other", seed=1)))
    assert extractor_hash(made) == extractor_hash(moved) != extractor_hash(other) and made == moved != other


def test_only_the_network_of_the_paper_has_the_plain_name(tmp_path, monkeypatch):
    dinov2._loaded.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", stand_in())
    made = DINOv2(str(tiny(tmp_path / "tiny")))
    config = made._network().config
    for width, depth, name in ((1024, 24, "FD-DINOv2"), (768, 12, "FD-DINOv2 (768 features)")):
        config.hidden_size, config.num_hidden_layers = width, depth
        assert made.fd_name == name
    dinov2._loaded.cache_clear()


def test_the_hub_is_asked_only_by_download(tmp_path, monkeypatch):
    hub, constants = pytest.importorskip("huggingface_hub"), pytest.importorskip("huggingface_hub.constants")
    dinov2._loaded.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", stand_in())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = []

    def snapshot_download(name, *, revision, allow_patterns, **_):
        asked.append(name)
        assert not any(
            pattern.endswith((".py", ".bin", "*")) for pattern in allow_patterns if "safetensors" not in pattern
        )
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs/main").write_text("c0ffee")
        return str(tiny(place / "snapshots/c0ffee"))

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    for name in ("dinov2", "dinov2:small", "dinov2:someone/else"):
        with pytest.raises(
            FileNotFoundError, match="is fetched by: --features dinov2:(facebook|someone)/[a-z0-9-]*,download"
        ):
            chosen_features(name)
    assert asked == []
    found = chosen_features("dinov2:base,download")
    assert asked == ["facebook/dinov2-base"] and found.weights == "facebook/dinov2-base"
    assert chosen_features("dinov2:base") == found == DINOv2("facebook/dinov2-base") and len(asked) == 1
    chosen_features("dinov2:download")
    assert asked[1:] == ["facebook/dinov2-large"]
    with pytest.raises(ValueError, match="expected owner/name"):
        DINOv2.download("./folder")


def test_what_is_no_such_network_is_refused(library, tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no folder with config.json and model.safetensors"):
        DINOv2(str(tmp_path / "none"))
    registers = tiny(tmp_path / "registers", model_type="dinov2_with_registers")
    with pytest.raises(FormatError, match="config.json: is of a 'dinov2_with_registers'"):
        DINOv2(str(registers))
    (registers / "config.json").write_text("[]")
    with pytest.raises(FormatError, match="config.json: not the configuration"):
        DINOv2(str(registers))
    with pytest.raises(FormatError, match="missing_keys encoder.layer.2"):
        DINOv2(str(tiny(tmp_path / "shallow", num_hidden_layers=3)))
    folder = tiny(tmp_path / "tiny")
    with pytest.raises(FormatError, match="not 00; it is another file"):
        DINOv2(str(folder), "00")
    with pytest.raises(ValueError, match="'dinov2' read grey or RGB images"):
        DINOv2(str(folder)).features(torch.zeros(1, 2, 8, 8))


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    dinov2._loaded.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'elucidiff\[dinov2\]'"):
        DINOv2(str(tiny(tmp_path / "tiny")))
    with pytest.raises(MissingExtraError):
        DINOv2.download()


# --- the user's own -------------------------------------------------------------------------------------------

SOURCE = """
import torch

def means(x):
    return x.mean((2, 3))

def seen(x):
    if x.dtype != torch.float32 or torch.is_grad_enabled():
        raise TypeError("other than promised")
    return torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3))], 1)

class Bank:
    @staticmethod
    def first(x):
        return x[:, :, 0, 0]

def fails(x):
    raise RuntimeError("out of luck\\nsecond line")

nothing = lambda x: None
scaled = lambda x: x[:, :, 0, 0] / x.std((1, 2, 3))[:, None]
flat = lambda x: x.mean((1, 2, 3))
fewer = lambda x: x[1:, :, 0, 0]
empty = lambda x: x.new_zeros(len(x), 0)
nan = lambda x: x[:, :, 0, 0] / 0 * 0
imaginary = lambda x: x[:, :, 0, 0] * 1j
number = 5
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own_features_of_a_test.py in the working directory, as module and as file."""
    file = tmp_path / "own_features_of_a_test.py"
    file.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield file
    sys.modules.pop(file.stem, None)


@pytest.mark.parametrize("form", ["own_features_of_a_test:{}", "own_features_of_a_test.py:{}", "{file}:{}"])
def test_a_function_of_the_users_own_is_imported_and_called(own, form):
    x = images(700, 3, 4, 5)
    made = chosen_features(form.format("means", file=own))
    assert torch.allclose(made.features(x), x.double().mean((2, 3)), rtol=0, atol=1e-6)
    low, high = chosen_features(form.format("seen", file=own)).features(x).T
    assert torch.equal(low, x.amin((1, 2, 3)).double()) and torch.equal(high, x.amax((1, 2, 3)).double())
    assert torch.equal(chosen_features(form.format("Bank.first", file=own)).features(x), x[:, :, 0, 0].double())
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    name = f"{form.split(':')[0].format(file=own.name)}:means"
    assert made.to_dict() == {"kind": "function", "name": name, "sha256": digest}
    assert chosen_features(form.format("scaled", file=own)).dim((3, 4, 4)) == 3
    assert str(made) == f"{name} {digest[:8]}" and made.fd_name == "Fréchet distance" and made.dim((3, 4, 4)) == 3


def test_another_source_is_another_extractor(own):
    before = named_features(f"{own}:means")
    assert before == named_features(f"{own}:means") != named_features(f"{own}:seen")
    own.write_text(SOURCE + "\n")
    after = named_features(f"{own}:means")
    assert after != before and extractor_hash(after) != extractor_hash(before)
    assert named_features("builtins:abs").to_dict() == {"kind": "function", "name": "builtins:abs", "sha256": ""}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "no_such_module: cannot be imported \\(ModuleNotFoundError"),
        ("none.py:f", "none.py: no such file of features"),
        ("broken.py:f", "broken.py: cannot be imported \\(SyntaxError"),
        ("own_features_of_a_test.py:absent", "has no 'absent'"),
        ("own_features_of_a_test.py:Bank.absent", "has no 'absent'"),
        ("own_features_of_a_test.py:number", "is a int, not callable"),
        ("own_features_of_a_test.py:nothing", "gave a NoneType"),
        ("own_features_of_a_test.py:flat", r"gave \(3,\) for 3 samples; expected \(3, d\)"),
        ("own_features_of_a_test.py:fewer", r"gave \(2, 3\) for 3 samples"),
        ("own_features_of_a_test.py:empty", r"gave \(3, 0\) for 3 samples"),
        ("own_features_of_a_test.py:nan", "values that are not finite"),
        ("own_features_of_a_test.py:imaginary", "gave a tensor of torch.complex64"),
        ("own_features_of_a_test.py:fails", r"failed at samples \(3, 3, 8, 8\): RuntimeError: out of luck$"),
    ],
)
def test_what_is_no_extractor_is_refused_in_one_line(own, name, message):
    own.with_name("broken.py").write_text("def f(x) return x")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        chosen_features(name).features(images(3))
    assert "\n" not in str(caught.value)


def test_other_texts_with_colons_are_no_functions(own):
    for text in (r"C:\runs\judge.json", "C:/runs/judge.safetensors", "a:b:c", "own:1", ":f", "a-b:f"):
        with pytest.raises(ValueError, match="expected module:function or FILE.py:function"):
            named_features(text)
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        chosen_features(r"C:\runs\judge.json")
    assert "cannot be imported" not in str(caught.value)
    assert metrics.named.is_named(r"C:\work\own.py:f") and metrics.named.is_named("pkg.sub:Class.method")
    with pytest.raises(ValueError, match="unknown features 'function'"):
        metrics.Features.from_dict({"kind": "function", "name": "os:getcwd", "sha256": ""})


def test_scores_name_the_function_and_not_the_fid(own, capsys, tmp_path):
    np.savez(tmp_path / "noise.npz", images=np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8))
    evaluate = [
        "evaluate",
        "exact:noise.npz",
        "noise.npz",
        "--num",
        "8",
        "--steps",
        "3",
        "--metrics",
        "fd,kd",
        "--json",
    ]
    code, out, err = run(capsys, *evaluate, "--features", "own_features_of_a_test:means")
    found = json.loads(out)
    assert code == 0, err
    assert found["features"]["name"] == "own_features_of_a_test:means" and len(found["features"]["sha256"]) == 64
    assert {s["features"] for s in found["scores"]} == {str(named_features("own_features_of_a_test:means"))}
    assert "FID" not in out
    code, out, err = run(capsys, *evaluate, "--features", "own_features_of_a_test:flat")
    assert (code, out) == (2, "") and "own_features_of_a_test:flat" in err and len(err.splitlines()) <= 2, err


def test_the_name_fid_belongs_to_one_extractor():
    """Beside what the tests above and those of Inception say of each."""
    others = [metrics.Identity(), metrics.Pyramid(), metrics.DigitFeatures(), named_features("math:sqrt")]
    assert {extractor.fd_name for extractor in others} == {"Fréchet distance"}
    assert set(metrics.Features.kinds()) >= {"identity", "pyramid", "digits", "inception", "dinov2"}
