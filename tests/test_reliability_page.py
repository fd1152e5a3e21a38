"""The page of reliability says what was done, what is missing and what failed."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "chaos.py"


def test_the_page_hides_nothing():
    spec = importlib.util.spec_from_file_location("chaos", SCRIPT)
    chaos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chaos)
    records = [
        {"promise": "R2", "test": "tests/x.py::test_a[b]", "figures": {"seconds": 3.5, "kills": 1000, "hash": "ab"}},
        {"promise": "T1", "test": "tests/x.py::test_s", "figures": {"seconds": 1.0, "ranks": 2}},
        {"test": "tests/x.py::test_c", "outcome": "failed", "reason": "4 is not 5"},
        {"test": "tests/x.py::test_d", "outcome": "skipped", "reason": "no disk"},
    ]
    page = chaos.page(records, False, 12.0, Path("/tmp"))
    assert "kills 1,000, hash ab<br>`tests/x.py::test_a` | 3.5 |" in page and "| T1 |  | ranks 2<br>" in page
    assert "sizes: **a tenth**" in page and "1 tests failed, 1 were skipped" in page
    assert "failed: `tests/x.py::test_c`: 4 is not 5" in page and "skipped: `tests/x.py::test_d`: no disk" in page
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines()}
    assert all("no test recorded anything" in rows[name] for name in chaos.RUNS if name != "R2")
    assert {f"R{i}" for i in range(1, 18)} | {f"N{i}" for i in range(1, 14)} | {
        f"F{i}" for i in range(1, 6)
    } <= rows.keys()
    assert "is gone" not in page  # the tests that it names are there
    assert "sizes: full" in chaos.page(records, True, 12.0, Path("/tmp"))
