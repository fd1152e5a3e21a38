"""What several test files use: the folder of shared data, and determinism."""

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
