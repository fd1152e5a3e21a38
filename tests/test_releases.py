"""What earlier releases wrote: their models sample, and their runs go on, to the stored values (R15)."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import elucidiff as ed
from elucidiff.training import checkpoint

HERE = Path(__file__).parent
RELEASES = sorted(path for path in (HERE / "releases").iterdir() if path.is_dir())
TOLERANCE = {"samples": 1e-10, "state": 1e-4}  # of the largest number of a tensor, see scripts/store_release.py


def script():
    spec = importlib.util.spec_from_file_location("store_release", HERE.parent / "scripts" / "store_release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder / "run", place / "run"))


@pytest.mark.parametrize("folder", RELEASES, ids=lambda path: path.name)
def test_a_release_samples_and_goes_on_to_the_stored_values(tmp_path, folder, promise):
    release = script()
    expected = json.loads((folder / "expected.json").read_text())
    found = {"samples": release.sampled(folder / "model"), "state": release.resumed(copied(folder, tmp_path))}
    worst = {}
    for name, tensors in found.items():
        stored = load_file(folder / f"{name}.safetensors")
        assert stored.keys() <= tensors.keys()  # a later version may remember more
        assert release.sha256(stored) == expected["sha256"][name]
        errors = {
            key: float((tensors[key] - t).abs().max() / t.abs().max().clamp_min(1e-30)) for key, t in stored.items()
        }
        worst[name] = max(errors.values())
        assert worst[name] <= TOLERANCE[name], errors
    same_machine = expected["stored_on"] == release.machine()
    if same_machine:
        equal = {name: release.sha256({k: t for k, t in tensors.items()}) for name, tensors in found.items()}
        assert equal == expected["sha256"]
    promise("R15", release=folder.name, bits_compared=same_machine, largest_difference=max(worst.values()))


def test_this_version_is_stored():
    assert [path.name for path in RELEASES][-1:] and (HERE / "releases" / ed.__version__).is_dir()


@pytest.mark.parametrize("what", ["a moment", "the step", "the weights"])
def test_the_comparison_would_notice(tmp_path, what):
    """A format that loses something does not come out at the same values."""
    folder, release = HERE / "releases" / ed.__version__, script()
    run = copied(folder, tmp_path)
    state = checkpoint.read(run)
    tensors, facts = dict(state.tensors), {k: v for k, v in state.facts.items() if k not in ("format", "images")}
    if what == "a moment":
        tensors = {k: t * 0 if k.endswith("exp_avg_sq") else t for k, t in tensors.items()}
    elif what == "the step":
        facts["step"] -= 1
    else:
        tensors = {k: t * (1 + 1e-3) if k.startswith("model.") else t for k, t in tensors.items()}
    shutil.rmtree(checkpoint.stored(run)[-1])
    checkpoint.write(run, state.facts["images"], checkpoint.State(tensors, facts))
    stored, found = load_file(folder / "state.safetensors"), release.resumed(run)
    errors = [float((found[k] - t).abs().max() / t.abs().max().clamp_min(1e-30)) for k, t in stored.items()]
    assert max(errors) > TOLERANCE["state"]
