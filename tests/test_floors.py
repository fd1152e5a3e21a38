"""The house: a file imports only from floors below its own; and what never stands in the source (F5)."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "elucidiff"
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS = {
    1: "errors component tensors seeds brownian files locks download portions progress citations foreign hub _version",
    2: "formulation networks data augment metrics",
    3: "timesteps preconditioning conditioning",
    4: "denoiser",
    4.5: "objective identity",
    5: "solvers guidance posterior",
    5.5: "request result",
    6: "sampler",
    6.5: "drive latents sharing",
    6.7: "adapters",
    7: "design",
    7.5: "models",
    7.7: "publish",
    8: "training analysis tuning",
    9: "cli ui report recipes demo bench analyze",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}


def room(path: Path) -> str:
    """The top-level module that a file belongs to: solvers for solvers/run.py."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imported_rooms(node: ast.AST, package: tuple[str, ...]) -> set[str]:
    """The rooms imported anywhere below a node, except under TYPE_CHECKING."""
    found: set[str] = set()
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else ()
        full = (*base, *(node.module.split(".") if node.module else ()))
        if full == ("elucidiff",):
            found = {alias.name for alias in node.names}
        elif full[:1] == ("elucidiff",):
            found = {full[1]}
    elif isinstance(node, ast.Import):
        found = {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("elucidiff.")}
    children = node.orelse if is_type_checking(node) else ast.iter_child_nodes(node)
    return found.union(*(imported_rooms(child, package) for child in children))


def offences(path: Path, source: str) -> list[str]:
    own = room(path)
    imports = imported_rooms(ast.parse(source), ("elucidiff", *path.relative_to(SOURCE).parts[:-1]))
    imports = {"_version" if name == "__version__" else name for name in imports} - {own}
    if own == "__init__":
        return sorted(imports - {"_version"})  # everything else is imported where it is first used
    allowed = {name for name, floor in FLOOR_OF.items() if floor < FLOOR_OF[own] or floor == FLOOR_OF[own] == 1}
    if FLOOR_OF[own] == 2:
        allowed = set(FLOORS[1].split())
    if FLOOR_OF[own] >= 8:
        allowed |= {name for name, floor in FLOOR_OF.items() if floor == FLOOR_OF[own]}
    return sorted(imports - allowed)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_a_file_imports_only_from_floors_below_its_own(path):
    assert room(path) in {*FLOOR_OF, "__init__", "__main__"}, f"{room(path)} has no floor: give it one here"
    if room(path) != "__main__":
        assert offences(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("denoiser.py", "from .sampler import Sampler", ["sampler"]),
        ("denoiser.py", "def f():\n    from . import objective, seeds", ["objective"]),
        ("denoiser.py", "import elucidiff.cli.main", ["cli"]),
        ("solvers/run.py", "from ..sampler import x\nfrom .solver import y\nfrom ..denoiser import z", ["sampler"]),
        ("networks/mlp.py", "from ..formulation import VP\nfrom ..component import Value", ["formulation"]),
        ("seeds.py", "if TYPE_CHECKING:\n    from .design import Design\nelse:\n    from . import data", ["data"]),
        ("solvers/run.py", "from ... import torch\nimport torch", []),
        ("__init__.py", "from .design import Design", ["design"]),
    ],
)
def test_the_floor_test_finds_offences(file, source, found):
    assert offences(SOURCE / file, source) == found


# F5

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
FORBIDDEN_CALLS = {"torch.load", "exec", "eval", "os.system", "os.popen", "np.load", "numpy.load", "__import__"}
EXPECTED_KEYWORDS = {"np.load": "allow_pickle", "numpy.load": "allow_pickle"}


def dangers(source: str) -> list[str]:
    """What would run code from a file, or checks that vanish under python -O, in a source text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            found.append("assert")
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] if module.split(".")[0] in FORBIDDEN_MODULES else []
            found += [f"{module}.{a.name}" for a in node.names if f"{module}.{a.name}" in FORBIDDEN_CALLS]
        if isinstance(node, ast.Call):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            called = ast.unparse(node.func)
            explicit = keywords.get(EXPECTED_KEYWORDS.get(called, "")) == "False"
            found += [called] if called in FORBIDDEN_CALLS and not explicit else []
            found += [f"{k}={keywords[k]}" for k in ("shell", "allow_pickle") if keywords.get(k, "False") != "False"]
            found += ["weights_only=False"] if keywords.get("weights_only") == "False" else []
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_the_source_has_nothing_that_runs_what_a_file_says(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load(p)", "from torch import load", "exec('1')", "x = eval('1')",
     "os.system('ls')", "from os import system", "subprocess.run('ls', shell=True)", "np.load(p, allow_pickle=True)",
     "np.load(p)", "assert x > 0", "torch.load(p, weights_only=False)"],
)  # fmt: skip
def test_the_test_of_the_source_finds_offences(source):
    assert dangers(source) != []
    assert dangers("model.eval()\nnp.load(p, allow_pickle=False)\nimport json\nre.compile('x')") == []


def test_files_stay_short():
    lengths = {p.relative_to(SOURCE).as_posix(): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert {name: n for name, n in lengths.items() if n > 450} == {}  # "under about 400 lines"
