"""The report on a model: every instrument runs, the page, the JSON and the files say the same, nothing is overwritten."""

import json

import pytest
import torch

import elucidiff as ed
from elucidiff.analysis import global_error, reference_and_real
from elucidiff.analyze import INSTRUMENTS, analyze
from elucidiff.cli.main import main


@pytest.fixture(scope="module")
def digits():
    """A tenth of the digits and their exact denoiser, conditional on the class."""
    data = ed.data.load("digits").subset(range(0, 1797, 10))
    _, real = reference_and_real(data)
    x, labels = real.batch(list(range(len(real))))
    return data, ed.EmpiricalDenoiser(x, labels, data.label_dim)


@pytest.fixture(scope="module")
def report(digits, tmp_path_factory):
    data, denoiser = digits
    out = tmp_path_factory.mktemp("analysis") / "report"
    said = []
    sections = analyze(denoiser, data, name="<exact>", budgets=(4, 6), seeds=4, num=48, out=out, say=said.append)
    assert [line.split()[1] for line in said] == list(INSTRUMENTS)
    return out, sections


def test_every_instrument_leaves_numbers_and_pictures(report):
    out, sections = report
    numbers = json.loads((out / "analysis.json").read_text())
    assert list(sections) == list(INSTRUMENTS) and set(numbers) == {"model", "data", *INSTRUMENTS}
    for name, section in sections.items():
        assert numbers[name] == json.loads(json.dumps(dict(section.numbers)))
        assert all((out / f"{p.file}.png").read_bytes() == p.png for p in section.pictures)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == sum(len(s.pictures) for s in sections.values()) == 8
    assert "&lt;exact&gt;" in page and "<exact>" not in page


def test_recommended_samplers_are_files_that_sample_reads(report, digits):
    out, sections = report
    for one in sections["recommendation"].numbers["recommendations"]:
        sampler = ed.Sampler.load(out / f"sampler-{one['nfe']}.json")
        assert ed.sample(digits[1], sampler, seeds=[0]).nfe <= one["nfe"]
        assert one["error"] < one["heun"]
    assert len(sections["recommendation"].tables[1].rows) == 4  # two budgets, recommended and Heun


def test_the_numbers_are_those_of_the_instruments(report, digits):
    sampler = ed.Sampler()
    direct = global_error(digits[1], {"EDM, Heun": sampler}, (6, 9), seeds=range(3000, 3004))
    whole = report[1]["truncation"].numbers["global"]["curves"][1]
    assert whole["name"] == "EDM, Heun"
    assert whole["error"][:2] == pytest.approx(direct.curves[0].error.tolist(), rel=0.02)


def test_one_number_shows_its_own_paths_and_needs_no_data(tmp_path):
    denoiser = ed.GaussianMixtureDenoiser(torch.tensor([[-1.0], [2.0]]), 0.1)
    sections = analyze(denoiser, only=["curvature", "denoised", "decided"], seeds=4)
    assert list(sections) == ["curvature", "denoised", "decided"]
    assert "The model's own paths" in sections["curvature"].pictures[1].caption
    straightest = min(sections["curvature"].numbers["designs"], key=lambda design: design["jump_error"])
    assert straightest["name"] == "EDM"


def test_what_cannot_be_is_refused(digits, tmp_path, capsys):
    with pytest.raises(ValueError, match="'curvature'"):
        analyze(digits[1], only=["curvatur"])
    with pytest.raises(ValueError, match="needs DATA"):
        analyze(digits[1], only=["loss"])
    with pytest.raises(ValueError, match="at least 2"):
        analyze(digits[1], only=["decided"], seeds=1)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("precious")
    assert main(["analyze", "exact:digits", "--out", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err


def test_the_command_prints_tables_and_json(tmp_path, capsys):
    assert main(["analyze", "exact:digits", "--only", "curvature", "--samples", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Straightness" in shown and "EDM" in shown
    assert main(["analyze", "exact:digits", "--only", "curvature", "--samples", "2", "--json"]) == 0
    designs = json.loads(capsys.readouterr().out)["curvature"]["designs"]
    assert [design["name"] for design in designs] == ["VP", "VE", "EDM"]
