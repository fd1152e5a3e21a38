"""The demo: everything it writes, on a few images; and, at full length, the quality it promises."""

import json

import pytest

import elucidiff as ed
from elucidiff import demo


def test_a_short_demo_writes_everything_and_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SAMPLES", 48)
    said: list[str] = []
    outcome = demo.run_demo(tmp_path / "run", images=1000, say=said.append)
    assert said[-1] == f"report: {(tmp_path / 'run/report.html').resolve()}"
    assert json.loads((tmp_path / "run/scores.json").read_text()) == json.loads(json.dumps(outcome))
    assert set(outcome["scores"]) == {"EDM", "VP", "VE", "untrained"}
    for name in ("edm", "vp", "ve"):
        provenance = json.loads((tmp_path / "run/samples" / name / "samples.json").read_text())
        assert provenance["nfe"] == 35 and len(list((tmp_path / "run/samples" / name).glob("*.png"))) == 48
    page = (tmp_path / "run/report.html").read_text()
    for text in ("Samples", "Scores", "From noise to digit", "Loss per noise level", "2nd-order Heun", "karras2022edm"):
        assert text in page
    assert page.count("data:image/png;base64,") == 9
    with pytest.raises(FileExistsError, match="would be overwritten"):
        demo.run_demo(tmp_path / "run", images=1000, say=said.append)


def test_the_default_place_moves_on_when_taken(tmp_path):
    assert demo.free_name(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert demo.free_name(tmp_path / "demo") == tmp_path / "demo-3"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_full_demo_keeps_its_promises(digits_run):
    """Recognisable digits of the asked class, as close to held-out ones as real digits are."""
    outcome = json.loads((digits_run / "scores.json").read_text())
    scores = {name: {s["metric"]: s for s in row} for name, row in outcome["scores"].items()}
    edm = scores["EDM"]
    assert edm["agreement"]["n"] == 500 and edm["agreement"]["value"] >= 0.95
    assert edm["fd"]["value"] <= 4 * edm["fd"]["real"]
    assert edm["fd"]["value"] <= scores["untrained"]["fd"]["value"] / 10
    info = ed.load(digits_run).info
    assert info["data"]["fingerprint"] == ed.data.load("digits").split(0.5)[0].fingerprint()
