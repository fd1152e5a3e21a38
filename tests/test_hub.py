"""Models on the hub, by a hub that is a folder: names, what is fetched, round trips bit for bit, cards."""

import json
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

import elucidiff as ed
from elucidiff import hub
from elucidiff.analysis import Score
from elucidiff.cli.main import main
from elucidiff.errors import FormatError, MissingExtraError

huggingface_hub = pytest.importorskip("huggingface_hub")


class FakeHub:
    """Repositories as folders; a download is a folder of links, as in the hub's cache."""

    def __init__(self, place: Path) -> None:
        self.place, self.asked = place, []

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns=None, **_):
        self.asked.append((repo_id, revision))
        source = self.place / "repositories" / repo_id
        if not source.is_dir():
            raise huggingface_hub.errors.RepositoryNotFoundError(
                f"404 Client Error.\n\nRepository Not Found for url: {repo_id}", response=_Response()
            )
        snapshot = self.place / "cache" / repo_id / (revision or "main")
        blobs = self.place / "blobs"
        blobs.mkdir(exist_ok=True)
        for file in (p for p in source.rglob("*") if p.is_file()):
            name = file.relative_to(source).as_posix()
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                link = snapshot / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                blob = blobs / f"{abs(hash((repo_id, name)))}"
                shutil.copy(file, blob)
                link.symlink_to(blob)
        return str(snapshot)

    def HfApi(self, **_):
        return self

    def repo_exists(self, repo_id):
        return (self.place / "repositories" / repo_id).is_dir()

    def create_repo(self, repo_id, *, private, exist_ok):
        self.private = private
        (self.place / "repositories" / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.message = commit_message
        shutil.copytree(folder_path, self.place / "repositories" / repo_id, dirs_exist_ok=True)


class _Response:
    """What an error of the hub wants to know of an HTTP answer."""

    headers: dict = {}
    request = None
    status_code = 404


@pytest.fixture
def fake(monkeypatch, tmp_path) -> FakeHub:
    made = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", made.HfApi)
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def model() -> ed.Preconditioned:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ed.Preconditioned(
            ed.networks.MLP(width=8, depth=1), ed.preconditioning.EDM(0.7), shape=(2,), label_dim=3
        )


def test_a_model_comes_back_from_the_hub_bit_for_bit(fake, model):
    address = ed.push(model, "someone/points", design=ed.EDM.with_sigma_data(0.7), info={"data": {"name": "points"}})
    assert address == "https://huggingface.co/someone/points" and fake.private is False
    files = sorted(p.name for p in (fake.place / "repositories/someone/points").iterdir())
    assert files == ["README.md", "manifest.json", "model.json", "model.safetensors"]
    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    for name in ("someone/points", "hf://someone/points", "someone/points@v1.0"):
        again = ed.load(name)
        assert torch.equal(again(x, 0.5, labels=labels), model.eval()(x, 0.5, labels=labels))
        assert ed.models.design_of(again) == ed.EDM.with_sigma_data(0.7)
    assert fake.asked == [("someone/points", None), ("someone/points", None), ("someone/points", "v1.0")]
    ed.push(again, "someone/else", private=True)
    ours, theirs = (fake.place / f"repositories/someone/{n}/model.safetensors" for n in ("points", "else"))
    assert ours.read_bytes() == theirs.read_bytes() and fake.private is True


def test_a_repository_is_not_overwritten_unless_asked(fake, model):
    ed.push(model, "someone/points")
    with pytest.raises(FileExistsError, match="someone/points: exists on the hub; give update=True"):
        ed.push(model, "someone/points")
    ed.push(model, "someone/points", update=True, message="better")
    assert fake.message == "better"
    for name in ("points", "a/b/c", "hf://a/b", "a/b@v1", "../points"):
        with pytest.raises(ValueError, match="expected owner/name"):
            ed.push(model, name)


def test_damage_on_the_hub_is_noticed_and_its_own_files_are_not_damage(fake, model):
    ed.push(model, "someone/points")
    folder = fake.place / "repositories/someone/points"
    (folder / "README.md").write_text("edited on the web\n")
    (folder / ".gitattributes").write_text("*.safetensors lfs\n")
    (folder / "modeling.py").write_text("raise SystemExit\n")  # never fetched
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    assert ed.load("someone/points").shape == (2,)
    fetched = {p.name for p in (fake.place / "cache/someone/points/main").iterdir()}
    assert fetched == {"README.md", "manifest.json", "model.json", "model.safetensors"}
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match="SHA-256 differs"):
        ed.load("someone/points")
    manifest = folder / "manifest.json"
    for path in ("../../secret", "/etc/hostname"):
        manifest.write_text(json.dumps({"sha256": {path: "0"}}))
        with pytest.raises(FormatError, match="is outside the folder"):
            ed.load("someone/points")


def test_a_pipeline_of_diffusers_on_the_hub_is_a_model(fake):
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1
    )  # fmt: skip
    place = fake.place / "repositories/someone/pictures"
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(place)
    denoiser = ed.load("someone/pictures")
    x = torch.randn(1, 3, 8, 8)
    direct = ed.adapters.diffusers.load(network.eval(), scheduler=diffusers.DDPMScheduler())
    assert torch.allclose(denoiser(x, 1.0), direct(x, 1.0), atol=1e-5)
    ed.push(denoiser, "someone/native")
    assert torch.equal(ed.load("someone/native")(x, 1.0), denoiser(x, 1.0))
    card = (fake.place / "repositories/someone/native/README.md").read_text()
    assert "elucidiff[hub,diffusers]" in card and "imported from diffusers (UNet2DModel)" in card
    (place / "unet" / "diffusion_pytorch_model.safetensors").rename(place / "unet" / "diffusion_pytorch_model.bin")
    shutil.rmtree(fake.place / "cache")
    with pytest.raises(FormatError, match=r"has no weights \(\*.safetensors\); ask its publisher"):
        ed.load("someone/pictures")


def test_names():
    assert hub.repository("a/b") == ("a/b", None) and hub.repository("hf://a-1/b.c_d@refs/pr/1") == (
        "a-1/b.c_d",
        "refs/pr/1",
    )
    for text in ("a", "a/b/c", "/a/b", "./a", "../a", "a/", "a b/c", "a/b@", "", "exact:a/b", "C:\\a", "~/a"):
        assert hub.repository(text) is None, text


def test_what_is_here_is_never_looked_for_on_the_hub(fake, model, tmp_path):
    ed.save(model, tmp_path / "runs" / "points")
    assert ed.load("runs/points").shape == (2,)
    with pytest.raises(FileNotFoundError, match="runs/pionts: no such model"):
        ed.load("runs/pionts")  # a typing error, since runs/ is here
    assert fake.asked == []
    with pytest.raises(FileNotFoundError, match="someone/nothing: no such model here.*404 Client Error"):
        ed.load("someone/nothing")


def test_no_network_is_told_in_one_line(fake, monkeypatch):
    def offline(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach the hub\nand a page more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"\(cannot reach the hub\)$"):
        ed.load("someone/points")


def test_without_the_library_the_extra_is_named(monkeypatch, model, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"elucidiff\[hub\]"):
        ed.load("someone/points")
    with pytest.raises(MissingExtraError, match=r"elucidiff\[hub\]"):
        ed.push(model, "someone/points")
    assert main(["sample", "someone/points", "--out", "s"]) != 0
    assert "elucidiff[hub]" in capsys.readouterr().err


def test_the_command_line_converts_to_the_hub(fake, model, tmp_path, capsys):
    ed.save(model, tmp_path / "m")
    assert main(["convert", "m", "someone/points", "--to", "hub"]) == 0
    assert "https://huggingface.co/someone/points" in capsys.readouterr().out
    assert main(["convert", "someone/points", "copy"]) == 0
    assert (tmp_path / "copy/model.safetensors").read_bytes() == (tmp_path / "m/model.safetensors").read_bytes()
    assert main(["convert", "m", "p", "--to", "diffusers"]) == 2
    assert "no class for 'mlp'" in capsys.readouterr().err
    assert main(["convert", "m", "p", "--to", "onnx"]) == 2
    assert "unknown format 'onnx'" in capsys.readouterr().err


def test_the_card_says_what_the_model_is(model):
    model.info = {
        "license": "CC BY-NC-SA 4.0 (weights published with the EDM papers)",
        "data": {"name": "points", "images": 1797, "classes": ["a", "b", "c"]},
        "training": {"images_seen": 300000, "seconds": 61.2},
        "design": ed.EDM.with_sigma_data(0.7).to_dict(),
    }
    scores = [Score("fd", "Fréchet distance", 1.23456, None, 0.5, 500, 898, "digits"),
              {"name": "kernel distance", "value": 0.01, "error": 0.002, "real": None}]  # fmt: skip
    card = ed.model_card(model, scores, name="someone/points")
    front, rest = card.removeprefix("---\n").split("\n---\n")
    assert front.splitlines() == [
        "library_name: elucidiff",
        "license: cc-by-nc-sa-4.0",
        "tags:",
        "- diffusion",
        "- edm",
        "- elucidiff",
    ]
    assert rest.startswith("\n# points\n")
    for text in (
        'ed.load("someone/points")', "- 3 classes: a, b, c", "trained on points (1,797 images)", "300,000 images seen, 61 s",
        "| Fréchet distance | 1.2346 | 0.5 | 500 | digits |", "| kernel distance | 0.01 ± 0.002 |", "sigma_data = 0.7",
        "@inproceedings{karras2022edm", f"{sum(p.numel() for p in model.parameters()):,} parameters",
    ):  # fmt: skip
        assert text in rest, text
    table = ed.model_card(model, {"FID": 1.97})
    assert "| FID | 1.97 |" in table


def test_the_card_of_a_bare_model_and_odd_licences(model):
    card = ed.model_card(model)
    assert "license: unknown" in card and "## Preconditioning" in card and "σ_data²/(σ² + σ_data²)" in card
    odd = ed.model_card(model, license='my "own" terms\nlibrary_name: evil')
    assert 'license: other\nlicense_name: "my \\"own\\" terms\\nlibrary_name: evil"\n' in odd
    assert "license: apache-2.0\n" in ed.model_card(model, license="apache-2.0")
    pictures = ed.Preconditioned(ed.networks.MLP(width=8, depth=1), ed.preconditioning.EDM(), shape=(1, 8, 8))
    assert "pipeline_tag: unconditional-image-generation" in ed.model_card(pictures)
    yaml = huggingface_hub.ModelCard(odd).data.to_dict()  # the hub's own reader
    assert yaml["library_name"] == "elucidiff" and yaml["license_name"].startswith("my")
