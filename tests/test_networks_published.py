"""The published networks: golden outputs, names both ways, constructor arguments, sizes."""

import json

import pytest
import torch
from safetensors.torch import load_file

import elucidiff as ed
from conftest import shared
from elucidiff import preconditioning as pc
from elucidiff.cli.parse import apply_training_settings
from elucidiff.errors import FormatError
from elucidiff.networks import (
    ADM,
    DDPMPP,
    EDM2,
    MLP,
    NCSNPP,
    PRESETS,
    Network,
    for_shape,
    from_arguments,
    from_published,
    load_published,
    preset,
    published_names,
)

CASES = {  # the kind that each case must turn out to be
    "ddpmpp_edm": "ddpmpp",
    "ddpmpp_vp": "ddpmpp",
    "ncsnpp_edm": "ncsnpp",
    "ncsnpp_ve": "ncsnpp",
    "skip_edm": "ncsnpp",
    "adm_edm": "adm",
    "adm_iddpm": "adm",
    "adm_unlisted_edm": "adm",
    "edm2": "edm2",
    "edm2_heads": "edm2",
}
DOUBLED = "adm_iddpm"


def golden(name):
    """A case's description, its tensors, and its weights alone."""
    case = json.loads(shared("data/golden/networks.json").read_text())[name]
    tensors = load_file(shared(f"data/golden/network_{name}.safetensors"))
    weights = {k.removeprefix("weights."): v.float() for k, v in tensors.items() if k.startswith("weights.")}
    return case, tensors, weights


def configured(name, case):
    arguments = case["arguments"]
    return from_arguments(arguments.get("model_type", "EDM2"), arguments, doubled_output=name == DOUBLED)


def shape_of(case):
    side = case["arguments"]["img_resolution"]
    return (case["arguments"]["img_channels"], side, side)


def built(name):
    case, tensors, weights = golden(name)
    table = weights.pop("u", None)
    module = configured(name, case).build(shape_of(case), case["arguments"]["label_dim"]).eval()
    load_published(module, weights)
    return module, case, tensors, weights, table


def coefficients(kind, sigma, table):
    """(c_skip, c_out, c_in, c_noise), written out apart from the package."""
    if kind in ("EDMPrecond", "EDM2 Precond"):
        root = (sigma**2 + 0.25).sqrt()
        return 0.25 / root**2, sigma * 0.5 / root, 1 / root, sigma.log() / 4
    if kind == "VPPrecond":
        t = ((0.1**2 + 2 * 19.9 * (sigma**2).log1p()).sqrt() - 0.1) / 19.9
        return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), 999 * t
    if kind == "VEPrecond":
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()
    nearest = [min(range(1001), key=lambda j: abs(table[j].item() - s)) for s in sigma.tolist()]
    c_noise = torch.tensor([999 - j for j in nearest], dtype=torch.float64)
    return torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), c_noise


def worst(got, wanted):
    """The largest over images of max difference / max |wanted|."""
    return ((got - wanted).abs().flatten(1).amax(1) / wanted.abs().flatten(1).amax(1)).max().item()


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    module, case, tensors, _, table = built(name)
    assert configured(name, case).kind == CASES[name]
    assert sum(p.numel() for p in module.parameters()) == case["parameters"]
    c = coefficients(case["preconditioning"], tensors["sigma"].double(), table)
    c_skip, c_out, c_in = (v.reshape(-1, 1, 1, 1) for v in c[:3])
    x = tensors["x"]
    expected = {"D": tensors.get("augment_labels"), "D_without_augment": None}
    for key in expected.keys() & tensors.keys():
        with torch.no_grad():
            F = module(c_in.float() * x, c[3], tensors.get("labels"), expected[key])
        D = tensors[key].double()
        assert worst(c_skip * x + c_out * F, D) < 1e-5
        assert worst(F, (D - c_skip * x) / c_out) < 2e-5
    if "logvar" in tensors:
        torch.testing.assert_close(module.uncertainty(c[3]), tensors["logvar"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_denoiser_is_the_published_one(name):
    """The way a reader of published files goes: configuration, tensors, preconditioning with its stored table."""
    module, case, tensors, _, table = built(name)
    kinds = {"EDMPrecond": pc.EDM(), "EDM2 Precond": pc.EDM(), "VPPrecond": pc.VP(), "VEPrecond": pc.VE()}
    preconditioning = kinds.get(case["preconditioning"]) or pc.IDDPM(table=table.tolist())
    D = ed.Preconditioned(module, preconditioning, shape=shape_of(case), label_dim=case["arguments"]["label_dim"])
    conditions = {key: tensors[key] for key in ("labels", "augment_labels") if key in tensors}
    with torch.no_grad():
        got = D(tensors["x"], tensors["sigma"], **conditions)
    assert worst(got, tensors["D"]) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_names_go_both_ways(name):
    module, _, _, weights, _ = built(name)
    names = published_names(module)
    assert set(names) == {n for n in weights if not n.endswith("resample_filter")}
    assert set(names.values()) == set(module.state_dict())
    for published, own in names.items():
        assert torch.equal(module.state_dict()[own], weights[published])


@pytest.mark.parametrize("name", ["ncsnpp_edm", "edm2", "adm_edm"])
def test_published_tensors_fill_a_network_made_on_the_meta_device(name):
    module, case, tensors, weights, _ = built(name)
    with torch.device("meta"):
        empty = configured(name, case).build(shape_of(case), case["arguments"]["label_dim"]).eval()
    load_published(empty, weights)
    inputs = (tensors["x"], torch.tensor(0.1), tensors.get("labels"))
    assert torch.equal(empty(*inputs), module(*inputs))


def test_only_the_first_half_of_a_doubled_output_is_used():
    module, _, tensors, _, _ = built(DOUBLED)
    assert module.conv.weight.shape[0] == 6
    inputs = (tensors["x"], torch.tensor(300.0), tensors["labels"])
    before = module(*inputs)
    assert before.shape == tensors["x"].shape
    with torch.no_grad():
        module.conv.weight[3:] += 1
        module.conv.bias[3:] += 1
    assert torch.equal(module(*inputs), before)


# ------------------------------------------------------------------ sizes


def parameters(network, shape, label_dim=0):
    with torch.device("meta"):
        return sum(p.numel() for p in network.build(shape, label_dim).parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("ddpmpp-cifar10", (3, 32, 32), 0, 55_733_891),
        ("ddpmpp-cifar10", (3, 32, 32), 10, 55_735_299),
        ("ncsnpp-cifar10", (3, 32, 32), 10, 56_400_643),
        ("ddpmpp-64", (3, 64, 64), 0, 61_805_571),
        ("ncsnpp-64", (3, 64, 64), 0, 62_761_091),
        ("adm-imagenet64", (3, 64, 64), 1000, 295_899_267),
    ],
)
def test_published_parameter_counts(name, shape, classes, count):
    assert parameters(preset(name), shape, classes) == count


@pytest.mark.parametrize(
    ("size", "millions"), [("xs", 124.7), ("s", 280.2), ("m", 497.8), ("l", 777.5), ("xl", 1119.3), ("xxl", 1523.2)]
)
def test_published_parameter_counts_of_edm2(size, millions):
    assert round(parameters(preset(f"edm2-{size}"), (4, 64, 64), 1000) / 1e6, 1) == millions


@pytest.mark.parametrize(("size", "millions"), [("s", 33), ("b", 130), ("l", 458), ("xl", 675)])
def test_published_parameter_counts_of_dit(size, millions):
    """Table 1 of Peebles and Xie. Theirs also predict a variance: 1152 x 16 more numbers at the most."""
    assert round(parameters(preset(f"dit-{size}"), (4, 32, 32), 1000) / 1e6) == millions


def test_presets_are_chosen_by_kind():
    for name, network in PRESETS.items():
        assert Network.from_dict({"kind": name}) == network == preset(name)
        assert Network.from_dict(json.loads(json.dumps(network.to_dict()))) == network
        assert Network.from_dict({"kind": name, "dropout": 0.25}) == network.replace(dropout=0.25)
        assert preset(name, dropout=0.25) == network.replace(dropout=0.25)


def test_presets_are_chosen_on_the_command_line():
    dataset = ed.data.load("digits")
    config = ed.TrainConfig()
    for settings in (["network=edm2-xs", "network.dropout=0.2"], ["network.dropout=0.2", "network=edm2-xs"]):
        assert apply_training_settings(config, settings, dataset).network == EDM2(dropout=0.2)
    assert apply_training_settings(config, ["network=ncsnpp"], dataset).network == NCSNPP()
    assert apply_training_settings(config, ["network.channels=16"], dataset).network == for_shape(
        (1, 8, 8), channels=16
    )


@pytest.mark.parametrize("choose", [preset, lambda name: Network.from_dict({"kind": name})])
def test_unknown_presets_name_the_known_ones(choose):
    with pytest.raises(ValueError, match=r"'edm2-xxs'; did you mean 'edm2-xs'\? \(known: .*ddpmpp-cifar10.*ncsnpp-64"):
        choose("edm2-xxs")
    with pytest.raises(TypeError, match='expected an object with "kind"'):
        Network.from_dict({"channels": 8})
    with pytest.raises(ValueError, match="unknown network 8"):
        Network.from_dict({"kind": 8})


# ------------------------------------------------------------------ errors


def names_with(extra):
    return {"model.enc.16x16_conv.weight": torch.zeros(1), extra: torch.zeros(1)}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("model.enc.16x16_aux_conv.weight", r"DDPM\+\+ or NCSN\+\+"),
        ("model.enc.8x8_block0.conv2.weight", r"DDPM\+\+ or NCSN\+\+"),
        ("model.enc.8x8_conv.freqs", r"DDPM\+\+ or NCSN\+\+"),
        ("model.enc.8x4_conv.weight", r"DDPM\+\+ or NCSN\+\+"),
        ("u", r"DDPM\+\+ or NCSN\+\+"),
        ("model.out_scale", "ADM"),
        ("unet.emb_augment.weight", "EDM2"),
        ("unet.enc.8x8_block0.conv0.weight", "EDM2"),
    ],
)
def test_a_name_of_another_network_is_an_error(name, family):
    with pytest.raises(FormatError, match=f"tensor .* does not belong to a {family} network"):
        from_published(names_with(name) if not name.startswith("unet") else {name: torch.zeros(1)})


def test_two_tensors_in_one_place_are_an_error():
    with pytest.raises(FormatError, match="two have the same place"):
        from_published(names_with("enc.16x16_conv.weight"))


def small():
    module = DDPMPP(channels=8, multipliers=(1, 2), blocks=1).build((1, 8, 8), 0)
    return module, {name: torch.ones_like(module.state_dict()[own]) for name, own in published_names(module).items()}


def test_tensors_must_be_all_and_no_others():
    module, state = small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    stem = "model.enc.8x8_conv.weight"
    for changed, message in [
        ({k: v for k, v in state.items() if k != stem}, "stem.weight is missing"),
        (state | {"model.map_label.weight": torch.zeros(8, 3)}, "embedding.label.weight has no place"),
        (state | {stem: torch.zeros(8, 3, 3, 3)}, r"stem.weight has shape \(8, 3, 3, 3\), not \(8, 1, 3, 3\)"),
        ({stem: state[stem]}, "is missing; .* is missing; .* and [0-9]+ more"),
    ]:
        with pytest.raises(FormatError, match=message):
            load_published(module, changed)
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    load_published(module, state)
    assert all((tensor == 1).all() for tensor in module.state_dict().values())


def test_the_skip_decoder_does_not_fit_a_network_with_one_output():
    module, state = small()
    with pytest.raises(FormatError, match="heads.0.conv.weight has no place"):
        load_published(module, state | {"model.dec.4x4_aux_conv.weight": torch.zeros(1, 16, 3, 3)})


def test_networks_that_were_never_published_have_no_names():
    with pytest.raises(ValueError, match="Perceptron: no network of this kind was published"):
        published_names(MLP(width=8).build((4,), 0))
    with pytest.raises(ValueError, match="networks for square images"):
        published_names(DDPMPP(channels=8, blocks=1).build((1, 8, 16), 0))
    with pytest.raises(ValueError, match=r"embedding.augment.weight: the published EDM2 has no such tensor"):
        published_names(EDM2(channels=8, blocks=1, multipliers=(1,), augment_dim=9).build((1, 8, 8), 0))


def test_arguments_left_out_take_the_published_values():
    assert from_arguments("DhariwalUNet", {"img_resolution": 64, "label_dim": 1000}) == ADM()
    assert from_arguments("EDM2", {"model_channels": 192, "use_fp16": True, "channel_mult_emb": None}) == EDM2(
        channels=192
    )
    fourier = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult": [2, 2, 2], "augment_dim": 9}
    ncsnpp = from_arguments(
        "SongUNet", fourier | {"channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1], "dropout": 0.13}
    )
    assert ncsnpp == preset("ncsnpp-cifar10")
    bare = from_arguments("SongUNet", {"embedding_type": "fourier"})
    assert bare == NCSNPP(channel_mult_noise=1, encoder="standard", taps=(1, 1))


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        ("UNet2D", {}, "unknown published architecture 'UNet2D'"),
        ("SongUNet", {"num_block": 3}, "unknown argument of SongUNet 'num_block'; did you mean 'num_blocks'"),
        ("DhariwalUNet", {"encoder_type": "skip"}, "unknown argument of DhariwalUNet 'encoder_type'"),
        ("EDM2", {"concat_balance": 0.3}, "unknown argument of EDM2 'concat_balance'"),
        ("SongUNet", {"encoder_type": "skip"}, "embedding_type 'positional' with .*'skip'"),
        ("SongUNet", {"embedding_type": "learned"}, "embedding_type 'learned'"),
        ("SongUNet", {"model_channels": 30}, "arguments of SongUNet: channels: got 30"),
        ("SongUNet", {"model_channels": "many"}, "arguments of SongUNet: .*many"),
        ("SongUNet", {"resample_filter": 3}, "arguments of SongUNet"),
    ],
)
def test_arguments_that_no_published_network_has(architecture, arguments, message):
    with pytest.raises(FormatError, match=message):
        from_arguments(architecture, arguments)


# ------------------------------------------------------------------ iDDPM's stored table


def test_a_stored_table_takes_the_place_of_the_formula():
    p = pc.IDDPM(M=3, table=[5.0, 2.0, 1.0, 0.0])
    assert (p.sigma_min, p.sigma_max) == (1.0, 5.0)
    assert p.coefficients(torch.tensor([4.0, 1.6, 0.9, 0.2], dtype=torch.float64))[3].tolist() == [2, 1, 0, -1]
    assert p.round_sigma(torch.tensor([4.0, 1.4])).tolist() == [5, 1]
    assert pc.Preconditioning.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    assert str(p) == "iddpm(M=3, C1=0.001, C2=0.008, table=4 levels)"
    assert str(pc.IDDPM()) == "iddpm(M=1000, C1=0.001, C2=0.008)"  # as before there were tables
    assert pc.IDDPM().to_dict() == {"kind": "iddpm", "M": 1000, "C1": 0.001, "C2": 0.008}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([5.0, 1.0, 0.0], r"got 3 levels; expected M \+ 1 = 4"),
        ([5.0, 2.0, 2.0, 0.0], "decrease"),
        ([5.0, 2.0, 1.0, 0.5], "decrease to u_M = 0"),
        ([float("inf"), 2.0, 1.0, 0.0], "finite"),
    ],
)
def test_stored_tables_are_checked(table, message):
    with pytest.raises(ValueError, match=message):
        pc.IDDPM(M=3, table=table)
