"""Imported models do all that ours do: sample, be analysed, be fine-tuned, be saved and come back with the same bits."""

import json

import pytest
import torch

import elucidiff as ed
from elucidiff.adapters import guided_diffusion, score_sde
from elucidiff.analysis import curvature, truncation_error
from elucidiff.cli.main import main
from test_checkpoints import GUIDED, SCORES, Guided, Score, checkpoint, randomise
from test_nvlabs import load, written

FAMILIES = ["ddpmpp_edm", "ncsnpp_ve", "ddpmpp_vp", "skip_edm", "adm_iddpm", "edm2_heads"]
CHECKPOINTS = {
    "guided-diffusion": lambda path: guided(path, "conditional"),
    "score_sde, NCSN++": lambda path: score(path, "NCSN++"),
    "score_sde, DDPM++": lambda path: score(path, "DDPM++"),
}


def guided(path, case):
    torch.save(randomise(Guided(**GUIDED[case])).state_dict(), path)
    return guided_diffusion.load(path, resolution=GUIDED[case]["side"])


def score(path, case):
    torch.save(checkpoint(randomise(Score(**SCORES[case]))), path)
    return score_sde.load(path, resolution=16)


def imported(tmp_path, name):
    """The denoiser of a file of another project, written here."""
    return CHECKPOINTS[name](tmp_path / "x.pt") if name in CHECKPOINTS else load(written(tmp_path, name)[0])


@pytest.mark.parametrize("name", [*FAMILIES, *CHECKPOINTS])
def test_an_imported_model_samples_is_analysed_and_survives_saving(tmp_path, name):
    denoiser = imported(tmp_path, name)
    sampler = ed.EDM.sampler.replace(steps=4)
    one, other = (ed.sample(denoiser, sampler, seeds=[0, 1]).x for _ in range(2))
    assert torch.equal(one, other) and bool(one.isfinite().all())
    errors = truncation_error(denoiser, sampler, seeds=[0, 1], accuracy=0.2)
    assert errors.error[:-1].min() > 0 and bool(errors.error.isfinite().all())
    assert len(curvature(denoiser, seeds=[0], per_halving=1).designs) == 3
    ed.save(denoiser, tmp_path / "native")
    again = ed.load(tmp_path / "native")
    assert again.info == denoiser.info and ("imported" if name in CHECKPOINTS else "license") in again.info
    before, after = denoiser.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(ed.sample(again, sampler, seeds=[0, 1]).x, one)


@pytest.mark.parametrize("name", [*FAMILIES, *CHECKPOINTS])
def test_an_imported_model_is_fine_tuned_from_its_weights(tmp_path, name):
    """Adam on four images lowers the loss of Eq. 8 on the same images, noise and levels."""
    denoiser = imported(tmp_path, name).requires_grad_(True).train()
    objective = ed.EDM.objective
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(4, *denoiser.shape, generator=generator) * 2 - 1
    labels = torch.arange(4) % denoiser.label_dim if denoiser.label_dim else None

    def loss():
        return ed.loss(denoiser, y, objective, labels=labels, generator=torch.Generator().manual_seed(1)).mean()

    optimizer = torch.optim.Adam([p for p in denoiser.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(0)  # dropout
    first = float(loss().detach())
    for _ in range(8):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert float(loss().detach()) < 0.9 * first


@pytest.mark.filterwarnings("always:.*CC BY-NC-SA")
def test_inspect_says_what_a_snapshot_would_execute_and_the_model_in_it(tmp_path, capsys):
    path, case, *_ = written(tmp_path, "ddpmpp_edm")
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "would call: torch_utils.persistence._reconstruct_persistent_obj" in shown
    assert "would execute source of EDMPrecond" in shown and "ddpmpp" in shown
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["parameters"] == case["parameters"] and facts["reason"] is None
    assert facts["model"]["preconditioning"]["kind"] == "edm"


@pytest.mark.filterwarnings("ignore:.*CC BY-NC-SA")
@pytest.mark.parametrize("arguments", [{"sigma_min": 0.01, "sigma_max": 50.0}, {"sigma_min": 0.01}])
def test_the_noise_levels_of_a_file_survive_saving(tmp_path, arguments):
    path, *_ = written(tmp_path, "ddpmpp_edm", **arguments)
    denoiser = ed.load(path)
    assert denoiser.sigma_min == 0.01 and denoiser.sigma_max == arguments.get("sigma_max", float("inf"))
    again = ed.load(ed.save(denoiser, tmp_path / "native"))
    assert (again.sigma_min, again.sigma_max) == (denoiser.sigma_min, denoiser.sigma_max)


def test_inspect_of_weights_without_a_known_network_gives_the_reason(tmp_path, capsys):
    torch.save({"some.weight": torch.zeros(2, 3)}, tmp_path / "other.pt")
    assert main(["inspect", str(tmp_path / "other.pt")]) == 0
    shown = capsys.readouterr().out
    assert "1 tensors of 6 numbers" in shown and "no model that can be loaded" in shown and "some.weight" in shown


@pytest.mark.filterwarnings("always:.*CC BY-NC-SA")
def test_convert_makes_a_native_model_of_a_snapshot(tmp_path, capsys):
    path, *_ = written(tmp_path, "ddpmpp_vp")
    assert main(["convert", str(path), str(tmp_path / "native")]) == 0
    assert "CC BY-NC-SA" in capsys.readouterr().err
    model = ed.load(tmp_path / "native")
    assert model.preconditioning.kind == "vp" and "CC BY-NC-SA" in model.info["license"]
