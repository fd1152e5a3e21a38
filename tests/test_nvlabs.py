"""Snapshots in the published form: the golden networks, through the reader of foreign files and the map of names."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

import elucidiff as ed
import foreign_files as ff
from conftest import shared
from elucidiff.adapters import nvlabs
from elucidiff.errors import FormatError

CASES = ["ddpmpp_edm", "ncsnpp_edm", "skip_edm", "adm_edm", "adm_unlisted_edm", "ddpmpp_vp", "ncsnpp_ve", "adm_iddpm",
         "edm2", "edm2_heads"]  # fmt: skip


def golden(name):
    folder = shared("data/golden")
    case = json.loads((folder / "networks.json").read_text())[name]
    tensors = load_file(folder / f"network_{name}.safetensors")
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    return case, tensors, weights


def written(tmp_path, name, wide=True, **changes):
    case, tensors, weights = golden(name)
    weights = {k: v.float() for k, v in weights.items()} if wide else weights
    class_name = case["preconditioning"].removeprefix("EDM2 ")
    path = tmp_path / f"{name}.pkl"
    path.write_bytes(ff.snapshot(class_name, case["arguments"] | changes, weights))
    return path, case, tensors, weights


def load(path, *args):
    with pytest.warns(UserWarning, match="CC BY-NC-SA 4.0"):
        return nvlabs.load(path, *args)


@pytest.mark.parametrize("name", CASES)
def test_golden_networks_as_published(tmp_path, monkeypatch, name):
    monkeypatch.setenv("ELUCIDIFF_CANARY", str(tmp_path / "canary"))
    path, case, tensors, _ = written(tmp_path, name)
    denoiser = load(path)
    assert not (tmp_path / "canary").exists() and not hasattr(sys, "_elucidiff_canary")
    assert sum(p.numel() for p in denoiser.network.parameters()) == case["parameters"]
    side = case["arguments"]["img_resolution"]
    assert denoiser.shape == (case["arguments"]["img_channels"], side, side)
    assert denoiser.label_dim == case["arguments"]["label_dim"]
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())
    labels = {"labels": tensors["labels"]} if "labels" in tensors else {}
    for output in ("D", "D_without_augment"):
        augment = {"augment_labels": tensors["augment_labels"]} if output == "D" and "augment_labels" in tensors else {}
        if output in tensors:
            with torch.no_grad():
                D = denoiser(tensors["x"], tensors["sigma"], **labels, **augment)
            assert worst(D, tensors[output]) < 1e-5
            c_skip, c_out, *_ = (
                c.float().reshape(-1, 1, 1, 1) for c in denoiser.preconditioning.coefficients(tensors["sigma"].double())
            )
            F, F_golden = ((d - c_skip * tensors["x"]) / c_out for d in (D, tensors[output]))
            assert worst(F, F_golden) < 2e-5


def worst(got, wanted):
    return ((got - wanted).abs().flatten(1).amax(1) / wanted.abs().flatten(1).amax(1)).max().item()


@pytest.mark.parametrize("name", ["ddpmpp_edm", "edm2"])
def test_half_precision_files_give_float32_networks(tmp_path, name):
    path, _, tensors, _ = written(tmp_path, name, wide=False)
    denoiser = load(path)
    assert {p.dtype for p in denoiser.network.state_dict().values()} == {torch.float32}
    extra = {k: tensors[k] for k in ("labels", "augment_labels") if k in tensors}
    with torch.no_grad():
        assert worst(denoiser(tensors["x"], tensors["sigma"], **extra), tensors["D"]) < 1e-5


def test_the_uncertainty_of_edm2(tmp_path):
    path, _, tensors, _ = written(tmp_path, "edm2")
    denoiser = load(path)
    c_noise = denoiser.preconditioning.coefficients(tensors["sigma"].double())[3]
    with torch.no_grad():
        u = denoiser.network.uncertainty(c_noise)
    torch.testing.assert_close(u, tensors["logvar"], rtol=0, atol=2e-5)


def test_saved_with_its_licence_and_loaded_again(tmp_path):
    path, _, tensors, _ = written(tmp_path, "ddpmpp_vp")
    denoiser = load(path)
    ed.save(denoiser, tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "model.json").read_text())
    assert stored["info"]["license"] == nvlabs.LICENSE
    assert stored["info"]["imported"]["class"] == "VPPrecond"
    again = ed.load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(tensors["x"], 1.0), denoiser(tensors["x"], 1.0))
    assert again.preconditioning == ed.preconditioning.VP(M=1000, beta_d=19.9, beta_min=0.1, eps_t=1e-5)


def test_ed_load_recognises_snapshots_by_content(tmp_path):
    path, _, tensors, _ = written(tmp_path, "ddpmpp_vp")
    path = path.rename(tmp_path / "anything.bin")
    with pytest.warns(UserWarning, match="CC BY-NC-SA"):
        denoiser = ed.load(path)
    with torch.no_grad():
        D = denoiser(tensors["x"], tensors["sigma"])
    assert worst(D, tensors["D"]) < 1e-5


def test_loading_draws_nothing_from_the_global_generator(tmp_path):
    path, *_ = written(tmp_path, "ddpmpp_vp")
    before = torch.random.get_rng_state()
    load(path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_preconditionings_take_their_arguments(tmp_path):
    path, *_ = written(tmp_path, "ncsnpp_ve", sigma_min=0.05, sigma_max=50)
    denoiser = load(path)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (0.05, 50)
    path, *_ = written(tmp_path, "ddpmpp_edm", sigma_data=0.25, sigma_min=0.01, sigma_max=float("inf"))
    denoiser = load(path)
    assert denoiser.preconditioning.sigma_data == 0.25
    assert (denoiser.sigma_min, denoiser.sigma_max) == (0.01, float("inf"))


def test_arguments_by_position(tmp_path):
    case, tensors, weights = golden("ddpmpp_vp")
    arguments = dict(case["arguments"])
    first = tuple(arguments.pop(k) for k in ("img_resolution", "img_channels", "label_dim"))
    module = ff.precond("VPPrecond", case["arguments"], {k: v.float() for k, v in weights.items()})
    module._init_args, module._init_kwargs = first, ff.EasyDict(arguments)
    path = tmp_path / "module.pkl"
    path.write_bytes(ff.dumps(module))
    with torch.no_grad():
        assert worst(load(path)(tensors["x"], tensors["sigma"]), tensors["D"]) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_resolution": 10**9}, "img_resolution: got 1000000000; expected an integer of at most"),
        ({"num_blocks": 10**9}, "num_blocks: got"),
        ({"channel_mult": [1] * 100}, "channel_mult: got"),
        ({"channel_mult": [10**6]}, "channel_mult: got"),
        ({"model_channels": 64}, "the tensors do not fit the network"),
        ({"num_blocks": 2}, "the tensors do not fit the network"),
        ({"label_dim": 3}, "the tensors do not fit the network"),
        ({"attn_resolutions": [8]}, "the tensors do not fit the network"),
        ({"attn_resolutions": "all"}, "attn|attention"),
        ({"embedding_type": "nothing"}, "embedding_type"),
        ({"strange_argument": 1}, "unknown argument of SongUNet 'strange_argument'"),
        ({"beta_d": "x"}, "beta_d"),
        ({"img_resolution": None}, "img_resolution|makes no network"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, changes, message):
    path, *_ = written(tmp_path, "ddpmpp_vp", **changes)
    with pytest.raises(FormatError, match=message) as refused:
        nvlabs.load(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_tensors_that_do_not_fit(tmp_path):
    case, _, weights = golden("adm_iddpm")
    weights = {k: v.float() for k, v in weights.items()}
    path = tmp_path / "x.pkl"
    for bad in (
        {"u": weights["u"].flip(0)},
        {"model.out_conv.bias": torch.zeros(3)},
        {"model.extra.weight": torch.zeros(3)},
    ):
        path.unlink(missing_ok=True)
        path.write_bytes(ff.snapshot("iDDPMPrecond", case["arguments"], weights | bad))
        with pytest.raises(FormatError, match=r"table|do not fit|does not belong"):
            nvlabs.load(path)


def test_files_without_a_module_of_theirs(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(ff.dumps({"ema": ff.module(ff.sample_weights(), "Generator")}))
    with pytest.raises(FormatError, match="holds ema: Generator; expected one of EDMPrecond"):
        nvlabs.load(path)
    path.unlink()
    path.write_bytes(ff.dumps({"ema": ff.sample_weights()}))
    with pytest.raises(FormatError, match="holds no module"):
        nvlabs.load(path)
    path, *_ = written(tmp_path, "ddpmpp_vp")
    with pytest.raises(FormatError, match="under 'G'"):
        nvlabs.load(path, "G")
    with pytest.raises(FileNotFoundError):
        nvlabs.load(tmp_path / "absent.pkl")


STRANGE = [None, "x", -1, 0, 2.5, [], {}, (), 10**30, float("nan"), float("inf"), True, b"x", [[1]], {"a": 1}, [None]]


@pytest.mark.filterwarnings("ignore:.*CC BY-NC-SA")
@pytest.mark.parametrize("name", ["ddpmpp_vp", "ncsnpp_ve", "adm_iddpm", "edm2"])
def test_strange_arguments_are_refused_or_harmless(tmp_path, monkeypatch, name):
    """The weights are left out: whatever an argument makes of the network, reading ends in one kind of error."""
    case, _, weights = golden(name)
    class_name = case["preconditioning"].removeprefix("EDM2 ")
    path = tmp_path / "x.pkl"
    few = {k: v.float() for k, v in list(weights.items())[:2]}
    arguments = case["arguments"] | {"dropout": 0.1, "sigma_data": 0.5}
    for argument in arguments:
        for value in STRANGE:
            path.unlink(missing_ok=True)
            path.write_bytes(ff.snapshot(class_name, arguments | {argument: value}, few))
            with pytest.raises(FormatError) as refused:
                nvlabs.load(path)
            assert "\n" not in str(refused.value) and len(str(refused.value)) < 700
