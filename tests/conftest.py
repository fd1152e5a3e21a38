"""What several test files use: the folder of shared data, a trained model, and determinism."""

import os
from pathlib import Path

import pytest
import torch

# The tests' tensors are small: a second thread gains nothing, and on a busy machine its waiting costs a hundredfold.
torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


def shared(name: str) -> Path:
    """A file or folder of ../shared; the test is skipped with a message when it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


@pytest.fixture(autouse=True)
def _default_threads():
    torch.manual_seed(0)  # the package never draws from the global state; tests that do are repeatable
    yield


def pytest_collection_modifyitems(items):
    """Whichever test asks first waits for the training, so each that may is slow and has time for it."""
    for item in items:
        if "digits_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1500))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A full run of the demo, as people get it: three minutes on all cores, for slow tests that need a trained model."""
    from elucidiff import demo

    folder = tmp_path_factory.mktemp("digits") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        demo.run_demo(folder, say=lambda text: None)
    finally:
        torch.set_num_threads(threads)
    return folder
