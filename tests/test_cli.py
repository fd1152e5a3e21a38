"""The command line: what each command prints and writes, every combination of elements, errors of one line and code 2."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import elucidiff as ed
from conftest import shared
from elucidiff.cli import parse
from elucidiff.cli.main import main

REPOSITORY = Path(__file__).parents[1]


def cli(capsys, *argv) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_help_does_not_import_torch():
    program = "import sys; from elucidiff.cli.main import main; main(['--help']); main(['sample', '--help']); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "False"
    assert "Example: elucidiff sample" in run.stdout


def test_import_is_lazy_and_names_are_complete():
    program = "import sys, elucidiff as ed; early = 'torch' in sys.modules; print(early, all(hasattr(ed, n) for n in dir(ed)))"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        == "False True\n"
    )


def test_table1_prints_the_columns_and_constants(capsys):
    code, out, _ = cli(capsys, "table1")
    assert code == 0
    for text in (
        "VP",
        "VE",
        "iDDPM + DDIM",
        "EDM",
        "2nd-order Heun",
        "beta_d = 19.9",
        "sigma_max = 152.17",
        "rho = 7",
        "P_mean = -1.2",
    ):
        assert text in out
    assert list(json.loads(cli(capsys, "table1", "--json")[1])) == ["vp", "ve", "iddpm", "edm"]


def test_inspect_says_what_the_data_are(capsys):
    facts = json.loads(cli(capsys, "inspect", "digits", "--json")[1])
    assert facts["samples"] == 1797 and facts["shape"] == [1, 8, 8] and facts["classes"] == 10
    assert sum(facts["samples a class"]) == 1797
    assert facts["design"]["preconditioning"]["sigma_data"] == pytest.approx(0.751772, abs=1e-6)
    assert "sigma_data" in cli(capsys, "inspect", "digits")[1]


def test_sample_writes_images_and_provenance_that_draws_them_again(capsys, tmp_path):
    argv = [
        "sample",
        "exact:digits",
        "--seeds",
        "3,10-12",
        "--labels",
        "7",
        "--steps",
        "9",
        "--grid",
        tmp_path / "grid.png",
    ]
    code, out, _ = cli(capsys, *argv, "--out", tmp_path / "s", "--json")
    assert code == 0 and json.loads(out)["nfe"] == 17
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "000003.png", "000010.png", "000011.png", "000012.png", "manifest.json", "samples.json",
    ]  # fmt: skip
    provenance = json.loads((tmp_path / "s/samples.json").read_text())
    again = ed.sample(ed.load(provenance["model"]), ed.Sampler.from_dict(provenance["sampler"]),
                      seeds=provenance["seeds"], labels=torch.tensor(provenance["labels"]))  # fmt: skip
    pixels = np.stack([pixels_of(tmp_path / f"s/{seed:06d}.png") for seed in provenance["seeds"]])
    assert np.array_equal(pixels, ed.data.to_uint8(again.x)[:, 0].numpy())
    assert pixels_of(tmp_path / "grid.png").shape == (17, 17)


def test_samples_do_not_depend_on_the_batch_size(capsys, tmp_path):
    network = ed.networks.DDPMPP(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    ed.save(ed.Preconditioned(network, ed.preconditioning.EDM(), shape=(1, 8, 8)), tmp_path / "m")
    for name, more in {"a": ["--batch-size", "64"], "b": ["--batch-size", "5"], "c": ["--seeds", "7"]}.items():
        assert (
            cli(capsys, "sample", tmp_path / "m", "--seeds", "0-19", "--steps", "4", "--out", tmp_path / name, *more)[0]
            == 0
        )
    for name in [f"{seed:06d}.png" for seed in range(20)]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a/000007.png").read_bytes() == (tmp_path / "c/000007.png").read_bytes()


ONE_STEP = ["euler", "heun", "midpoint", "ralston", "rk2", "rk4", "dpmpp_2m"]
OTHERS = ["dpm2", "ab", "ipndm", "dpmpp_3m", "deis", "unipc", "gaussian", "rk45"]
STOCHASTIC = ["euler_maruyama", "pc", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"]
KINDS = {
    "solver": [*ONE_STEP, *OTHERS, *STOCHASTIC],
    "timesteps": ["edm", "vp", "ve", "iddpm", "logsnr", "uniform", "cosine"],
    "schedule": ["edm", "vp", "ve", "cosine", "flow"],
    "scaling": ["none", "vp", "flow"],
    "stochasticity": ["none", "churn", "ancestral"],
}


def test_the_lists_of_kinds_are_complete():
    modules = {"solver": ed.solvers.Solver, "timesteps": ed.timesteps.TimeSteps, "schedule": ed.formulation.Schedule,
               "scaling": ed.formulation.Scaling, "stochasticity": ed.solvers.Stochasticity}  # fmt: skip
    special = {"fixed", "sde", "table"}  # need data of their own: tested below and in test_formulation
    for role, kinds in KINDS.items():
        own = {k for k, c in modules[role].kinds().items() if c.__module__.startswith("elucidiff.")}
        assert own - special == set(kinds)


def distance_to_digits(combination, steps: int) -> float:
    """How far one sample ends from the nearest of 20 digits, through the command line's own parser."""
    data = ed.data.load("digits").subset(range(20)).tensor().double()
    settings = [f"{role}={kind}" for role, kind in zip(KINDS, combination, strict=True)]
    sampler = parse.apply_settings(ed.EDM.sampler, [*settings, f"steps={steps}"])
    x = ed.sample(ed.EmpiricalDenoiser(data), sampler, seeds=[0]).x
    return (x - data).abs().amax((1, 2, 3)).min().item()


def combinations(**chosen) -> list[tuple[str, ...]]:
    return list(itertools.product(*(chosen.get(role, kinds) for role, kinds in KINDS.items())))


def test_every_combination_of_elements_runs():
    tried = combinations(solver=ONE_STEP) + combinations(solver=OTHERS + STOCHASTIC, timesteps=["edm"])
    assert len(tried) == 2205 + 585
    assert not [c for c in tried if not distance_to_digits(c, steps=6) < float("inf")]


def test_every_combination_ends_at_the_data_with_the_paper_s_steps():
    # other time steps leave long last steps, on which Heun in the time of VE or VP needs more than 40 of them
    tried = combinations(solver=ONE_STEP + OTHERS, timesteps=["edm"])
    assert len(tried) == 675
    far = {c: d for c in tried if not (d := distance_to_digits(c, steps=40)) < 0.1}
    assert not far


@pytest.mark.parametrize(
    "settings",
    [["solver=rk2", "solver.alpha=0.6"], ["solver.alpha=0.6", "solver=rk2"], ['solver={"kind":"rk2","alpha":0.6}']],
)
def test_settings_apply_in_any_order_and_form(settings):
    assert parse.apply_settings(ed.EDM.sampler, settings).solver == ed.solvers.RK2(alpha=0.6)


def test_settings_with_lists_and_infinity():
    sampler = parse.apply_settings(ed.EDM.sampler, ["timesteps=fixed", "timesteps.sigmas=[80, 5, 0.5, 0]"])
    assert sampler.sigmas().tolist() == [80, 5, 0.5, 0] and sampler.steps == 3
    churn = parse.apply_settings(ed.EDM.sampler, ["stochasticity=churn", "stochasticity.S_max=inf"]).stochasticity
    assert churn == ed.solvers.Churn()


def test_published_spellings(capsys, tmp_path):
    argv = ["sample", "exact:digits", "--outdir", tmp_path / "s", "--seeds=0-3", "--batch=2", "--steps=5", "--S_churn=10",
            "--S_min=0.05", "--S_max=50", "--S_noise=1.003", "--rho=5", "--sigma_min=0.01", "--sigma_max=50", "--class=4"]  # fmt: skip
    assert cli(capsys, *argv)[0] == 0
    sampler = ed.Sampler.from_dict(json.loads((tmp_path / "s/samples.json").read_text())["sampler"])
    assert sampler.stochasticity == ed.solvers.Churn(S_churn=10, S_min=0.05, S_max=50, S_noise=1.003)
    assert (sampler.timesteps, sampler.sigma_min, sampler.sigma_max) == (ed.timesteps.EDM(rho=5), 0.01, 50)


def test_sampler_files_and_presets(capsys, tmp_path):
    ed.VE.sampler.replace(steps=4).save(tmp_path / "sampler.json")
    ed.VP.replace(steps=3).save(tmp_path / "design.json")
    for name, nfe in ((tmp_path / "sampler.json", 4), (tmp_path / "design.json", 3), ("iddpm", 18)):
        out = tmp_path / f"out{nfe}"
        code, text, _ = cli(capsys, "sample", "exact:digits", "--seeds", "0", "--sampler", name, "--out", out, "--json")
        assert code == 0 and json.loads(text)["nfe"] == nfe


def test_train_sample_evaluate_inspect_convert(capsys, tmp_path):
    run = tmp_path / "run"
    settings = ["network.channels=8", "batch=32", "heldout=0.5", "lr_ramp=0"]
    code, out, _ = cli(capsys, "train", "digits", "--out", run, "--images", "640", "--set", *settings)
    assert code == 0 and "640 images" in out
    assert cli(capsys, "convert", run, tmp_path / "model")[0] == 0
    facts = json.loads(cli(capsys, "inspect", tmp_path / "model", "--json")[1])
    assert (
        facts["network"]["channels"] == 8
        and facts["data"]["heldout"] == 0.5
        and facts["training"]["images_seen"] == 640
    )
    assert (
        cli(capsys, "sample", run, "--seeds", "0-49", "--labels", "0-9", "--steps", "3", "--out", tmp_path / "s")[0]
        == 0
    )
    scored = json.loads(
        cli(capsys, "evaluate", run, "digits", "--num", "50", "--steps", "3", "--labels", "0-9", "--json")[1]
    )
    from_folder = json.loads(cli(capsys, "evaluate", tmp_path / "s", "digits", "--json")[1])
    assert [s["metric"] for s in scored["scores"]] == ["fd", "kd", "agreement"] and scored["nfe"] == 5
    # the folder holds the same samples but for the padding of their batches
    for a, b in zip(scored["scores"], from_folder["scores"], strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-3) and a["real"] == pytest.approx(b["real"], rel=1e-9)
    assert "real data" in cli(capsys, "evaluate", tmp_path / "s", "digits")[1]


def test_points_are_trained_sampled_and_scored(capsys, tmp_path):
    x = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    np.save(tmp_path / "points.npy", x)
    argv = ["train", tmp_path / "points.npy", "--out", tmp_path / "run", "--images", "640", "--set", "batch=64"]
    assert cli(capsys, *argv)[0] == 0
    assert cli(capsys, "sample", tmp_path / "run", "--seeds", "0-9", "--steps", "3", "--out", tmp_path / "s")[0] == 0
    with np.load(tmp_path / "s/samples.npz") as arrays:
        assert arrays["samples"].shape == (10, 3)
    code, out, _ = cli(
        capsys, "evaluate", tmp_path / "run", tmp_path / "points.npy", "--num", "40", "--steps", "3", "--json"
    )
    assert code == 0 and {s["features"] for s in json.loads(out)["scores"]} == {"identity"}


def test_cifar_test_set_samples_are_test_images(capsys, tmp_path):
    path = shared("data/cifar10-test.zip")
    argv = ["sample", f"exact:{path}", "--steps", "18", "--seeds", "0-15", "--out", tmp_path / "s"]
    assert cli(capsys, *argv)[0] == 0
    data = ed.data.load(path).tensor()
    for file in sorted((tmp_path / "s").glob("*.png")):
        image = torch.from_numpy(pixels_of(file)).permute(2, 0, 1) / 127.5 - 1
        assert (data - image).abs().amax((1, 2, 3)).min() < 0.05  # one of the 10,000, to six of 256 levels


def test_plugin_kinds_work_on_the_command_line(tmp_path):
    plugin = REPOSITORY / "examples/own_elements.py"
    argv = ["sample", "exact:digits", "--plugin", plugin, "--seeds", "0", "--out", tmp_path / "s",
            "--set", "schedule=square", "schedule.k=9", "solver=half_euler", "--json"]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "elucidiff", *map(str, argv)], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout)["nfe"] == 36
    stored = json.loads((tmp_path / "s/samples.json").read_text())["sampler"]
    assert stored["schedule"] == {"kind": "square", "k": 9.0} and stored["solver"] == {"kind": "half_euler"}


def test_the_example_runs_and_its_elements_are_short():
    path = REPOSITORY / "examples/own_elements.py"
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    assert "survived JSON: True" in run.stdout
    import ast

    lengths = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            source = ast.get_source_segment(path.read_text(), node).splitlines()
            lengths[node.name] = sum(bool(line.strip()) and '"""' not in line for line in source)
    assert len(lengths) == 3 and max(lengths.values()) <= 8


def bad_inputs(tmp_path: Path) -> dict[str, tuple[list, str]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "mixed/a.png")
    Image.new("L", (8, 9)).save(tmp_path / "mixed/b.png")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("x")
    (tmp_path / "bad.json").write_text('{"solver": {"kind": "heun", "alpha": 1}}')
    sample, out = ["sample", "exact:digits"], ["--out", tmp_path / "new"]
    return {
        "missing model": (["sample", tmp_path / "none", *out], "no such model"),
        "missing data": (["train", tmp_path / "none.zip", *out], "no such file"),
        "empty folder": (["train", tmp_path / "empty", *out], "empty"),
        "mixed sizes": (["train", tmp_path / "mixed", *out], "b.png"),
        "unknown kind": ([*sample, *out, "--set", "solver=huen"], "did you mean 'heun'"),
        "unknown element": ([*sample, *out, "--set", "sovler=heun"], "did you mean 'solver'"),
        "unknown parameter": ([*sample, *out, "--set", "timesteps.roh=3"], "did you mean 'rho'"),
        "parameter of nothing": ([*sample, *out, "--set", "steps.rho=3"], "no parameters"),
        "not an assignment": ([*sample, *out, "--set", "solver"], "name=value"),
        "wrong type": ([*sample, *out, "--set", "steps=many"], "expected int"),
        "sigma range": ([*sample, *out, "--set", "sigma_min=5", "sigma_max=1"], "sigma_min < sigma_max"),
        "labels out of range": ([*sample, *out, "--labels", "12"], "0 to 9"),
        "steps 0": ([*sample, *out, "--steps", "0"], "at least 1"),
        "seeds backwards": ([*sample, *out, "--seeds", "5-2"], "did you mean 2-5"),
        "seeds nonsense": ([*sample, *out, "--seeds", "a"], "0-63,70"),
        "seeds twice": ([*sample, *out, "--seeds", "1,1"], "twice"),
        "batch size 0": ([*sample, *out, "--batch-size", "0"], "batch-size"),
        "taken folder": ([*sample, "--out", tmp_path / "taken"], "would be overwritten"),
        "unknown sampler": ([*sample, *out, "--sampler", "emd"], "did you mean 'edm'"),
        "bad sampler file": ([*sample, *out, "--sampler", tmp_path / "bad.json"], "alpha"),
        "missing sampler file": ([*sample, *out, "--sampler", tmp_path / "no.json"], "no such sampler file"),
        "unknown command": (["smaple"], "smaple"),
        "unknown option": ([*sample, *out, "--step", "3"], "--step"),
        "missing option": (sample, "--out"),
        "unknown device": ([*sample, *out, "--device", "warp"], "not available"),
        "unknown metric": (["evaluate", "exact:digits", "digits", "--metrics", "fid", "--num", "8", "--steps", "1"], "did you mean 'fd'"),
        "unknown design": (["train", "digits", *out, "--set", "design=edn"], "did you mean 'edm'"),
        "exact model converted": (["convert", "exact:digits", tmp_path / "new"], "EmpiricalDenoiser"),
        "missing plugin": ([*sample, *out, "--plugin", tmp_path / "none.py"], "no such plugin"),
        "sde without f": ([*sample, *out, "--set", "schedule=sde"], "'f' and 'g'"),
    }  # fmt: skip


def test_bad_input_gives_one_or_two_lines_and_code_2(capsys, tmp_path):
    for name, (argv, expected) in bad_inputs(tmp_path).items():
        code, out, err = cli(capsys, *argv)
        assert (name, code, out) == (name, 2, "")
        assert expected in err and err.startswith("error: ") and len(err.splitlines()) <= 2, (name, err)
        assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["sample", str(tmp_path / "none"), "--out", str(tmp_path / "new"), "--debug"])


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("0", 0),
        ("13800", 13800),
        ("90.5", 90.5),
        ("3h50m", 13800),
        ("2d12h", 216000),
        ("45s", 45),
        ("3:50:00", 13800),
        ("1-03:50:00", 100200),
    ],
)
def test_durations(text, seconds):
    assert parse.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "3x", "1h2d", "3:70:00", "nan", "1e9h", "3:50"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"duration: got .* expected seconds, or as 3h50m"):
        parse.duration(text)
