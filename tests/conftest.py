"""What several test files use: the folder of shared data, a trained model, determinism, and the record of promises."""

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
import torch

# The tests' tensors are small: a second thread gains nothing, and on a busy machine its waiting costs a hundredfold.
torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"
CHAOS = os.environ.get("ELUCIDIFF_CHAOS") == "1"  # `make chaos`: the tests of promises at their full sizes
RECORD = os.environ.get("ELUCIDIFF_CHAOS_RECORD")  # a file of JSON lines, of which scripts/chaos.py makes the page


def shared(name: str) -> Path:
    """A file or folder of ../shared; the test is skipped with a message when it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def sized(full: int) -> int:
    """A size of a promise's test: all of it in `make chaos`, a tenth in every other run."""
    return full if CHAOS else max(1, full // 10)


@pytest.fixture
def promise(request):
    """promise("R2", kills=100, equal=100): a promise of the reliability page was kept, at these sizes.

    A test that asks for this fixture is one of `make chaos`, by the marker it thereby has.
    """
    began = time.perf_counter()

    def record(name: str, **figures) -> None:
        seconds = round(time.perf_counter() - began, 1)
        _record({"promise": name, "test": request.node.nodeid, "figures": {"seconds": seconds} | figures})

    return record


def _record(line: dict) -> None:
    if RECORD:
        with open(RECORD, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config):
    config.addinivalue_line("markers", "chaos: shows a promise of docs/reliability.md; at full size in `make chaos`")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """What failed or was skipped goes into the record of promises too."""
    report = (yield).get_result()
    if item.get_closest_marker("chaos") and (report.failed or report.skipped):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(call.excinfo and call.excinfo.value)
        _record({"test": item.nodeid, "outcome": report.outcome, "reason": reason.splitlines()[0] if reason else ""})


@pytest.fixture(autouse=True)
def _default_threads():
    torch.manual_seed(0)  # the package never draws from the global state; tests that do are repeatable
    yield


def pytest_collection_modifyitems(items):
    """Whichever test asks first waits for the training, so each that may is slow and has time for it.

    They come first: the processes of `make test` take whole files, and should all wait while one of them trains.
    """
    trained = {item.nodeid for item in items if "digits_run" in getattr(item, "fixturenames", ())}
    first = {item.path for item in items if item.nodeid in trained}
    place = {item.path: i for i, item in enumerate(reversed(items))}  # whole files, in their order
    items.sort(key=lambda item: (item.path not in first, -place[item.path], item.nodeid not in trained))
    for item in items:
        if item.nodeid in trained:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1500))
        if "promise" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.chaos)
            if CHAOS:
                item.add_marker(pytest.mark.timeout(1800), append=False)


@pytest.fixture(scope="session")
def driver():
    """Trainings in processes of their own that can be killed, see tests/process_driver.py."""
    from process_driver import Driver

    found = Driver()
    yield found
    found.close()


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A full run of the demo, as people get it: three minutes on two cores, for slow tests that need a trained model.

    Of several processes of tests the first one trains it, on all cores; the others wait.
    """
    from elucidiff import demo

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "digits"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            threads = torch.get_num_threads()
            torch.set_num_threads(os.cpu_count() or 1)
            try:
                demo.run_demo(folder / "run", say=lambda text: None)
            finally:
                torch.set_num_threads(threads)
            (folder / "done").touch()
    return folder / "run"
