"""Started by tests/test_sharing.py with a folder: sampling killed before each of its writes in turn, and started again.

Prints how many places it was killed at. In a process of its own, with one thread, since it forks.
"""

import itertools
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import torch

import elucidiff as ed
from elucidiff.portions import Portion
from elucidiff.sharing import sample_into

EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link")
REMOVALS = ("os.remove", "os.rmdir")  # of a whole folder, file by file, by names relative to it


def denoiser() -> ed.Denoiser:
    return ed.GaussianDenoiser(torch.linspace(-0.5, 0.5, 16).reshape(1, 4, 4), 0.04)


SAMPLER, SEEDS, SIZE = ed.EDM.sampler.replace(steps=2), range(5), 2


def share(folder: Path, *portions: str) -> None:
    for portion in portions:
        sample_into(folder, denoiser(), SAMPLER, seeds=SEEDS, portion=Portion.parse(portion), batch_size=SIZE)


def killed_at(n: int, root: str) -> None:
    """This process ends before its n-th write below a folder."""
    count = itertools.count()

    def hook(event, args):
        writes = event in EVENTS or (event == "open" and args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR))
        below = writes and (str(args[0]).startswith(root) or (event in REMOVALS and args[1] != -1))
        if below and next(count) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_a_process(action) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(folder: Path) -> dict:
    """Name and bytes of what there is; the seconds differ, and with them samples.json and the manifest."""
    return {p.name: p.suffix == ".png" and p.read_bytes() for p in folder.iterdir()}


def main(root: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # no half part is ever found
    share(root / "clean", "0/1")
    expected = content(root / "clean")
    for n in itertools.count():
        out = root / "killed" / "samples"
        out.parent.mkdir()

        def until_killed(n=n, out=out):
            killed_at(n, str(out.parent))
            share(out, "0/1")

        if in_a_process(until_killed) == 0:
            print(n)
            return
        if out.exists() and content(out) != expected:
            sys.exit(f"killed at {n}: the folder is there and lacks something")
        if in_a_process(lambda out=out: share(out, "0/2", "1/2")) != 0:
            sys.exit(f"killed at {n}: it does not go on")
        if content(out) != expected or [p.name for p in out.parent.iterdir()] != ["samples"]:
            sys.exit(f"killed at {n}: another result, or something is left: {sorted(out.parent.rglob('*'))}")
        shutil.rmtree(out.parent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
