"""The process driver: trainings in processes of their own, to be killed, stopped, or crashed at a call that writes.

A server that has trained a little, so that everything is imported, forks a process for each training, which then begins
within milliseconds. It has one thread, since a fork would break others.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TESTS = Path(__file__).parent
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")  # audit events, beside `open` for writing


class Driver:
    """The server, seen from a test."""

    def __init__(self) -> None:
        one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        command = [sys.executable, "-W", "ignore", str(TESTS / "process_driver.py")]
        pipe = subprocess.PIPE
        self.server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | one)

    def asked(self, **request):
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, out: Path, name: str = "edm", **options) -> int:
        """Begin a training of a configuration of test_resume, see `trained`; its process."""
        return self.asked(start={"out": str(out), "name": name} | options)

    def ranks(self, out: Path, name: str, size: int, **options) -> list[int]:
        """Begin a training of several processes, without torchrun."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        each = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
        return [self.start(out, name, environment=environment, **options) for environment in each]

    def command(self, *argv: object, stderr: Path | None = None) -> int:
        """Begin a command of the command line; its process."""
        return self.asked(start={"argv": [str(a) for a in argv], "stderr": stderr and str(stderr)})

    def wait(self, process: int, timeout: float = 120.0) -> int | None:
        """The exit status, negative for a signal; None while it still runs after so many seconds."""
        return self.asked(wait=process, timeout=timeout)

    def run(self, out: Path, name: str = "edm", **options) -> int | None:
        return self.wait(self.start(out, name, **options))

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


class Crash:
    """Counts the calls that write below a folder; kills the process before the one of a number, when asked to.

    look: what to call before each. What a call is: an audit event of Python for files and folders, fsync, and the
    middle of writing tensors, which Python does not see.
    """

    def __init__(self, folder: Path, at: int | None, report: Path | None, look=lambda: None) -> None:
        self.folder, self.at, self.report, self.look = f"{folder}{os.sep}", at, report, look
        self.count, self.step, self.busy = 0, 0, False

    def install(self) -> None:
        from elucidiff import models
        from elucidiff.training import checkpoint

        sys.addaudithook(self.event)
        os.fsync = self.noticed(os.fsync)
        for module in (checkpoint, models):
            module.save_file = self.halved(module.save_file)

    def event(self, name: str, args: tuple) -> None:
        if self.busy or name not in (*WRITES, "open"):
            return
        if name == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        within = str(args[0]).startswith(self.folder) or (name in ("os.remove", "os.rmdir") and args[1] != -1)
        if within:
            self.call()

    def noticed(self, fsync):
        def call(file):
            self.call()
            fsync(file)

        return call

    def halved(self, save_file):
        def call(tensors, path):
            save_file(tensors, path)
            if self.count + 1 == self.at:
                os.truncate(path, path.stat().st_size // 2)
            self.call()

        return call

    def call(self) -> None:
        self.busy = True
        self.look()
        self.count += 1
        if self.count == self.at:
            self.finish()
            os.kill(os.getpid(), signal.SIGKILL)
        self.busy = False

    def finish(self) -> None:
        if self.report:
            self.report.write_text(json.dumps({"calls": self.count, "step": self.step}))


def trained(
    out: str,
    name: str,
    *,
    images: int | None = None,
    every: int | None = None,
    crash: int | None = None,
    report: str | None = None,
    watched: bool = False,
    pause: float = 0.0,
    settings: dict | None = None,
) -> int:
    """Train, and say by the exit status what came of it, as the command line does.

    every: images between two checkpoints. crash: the number of the call that writes, before which to die; report: where
    to note calls and steps. watched: fail where, before any such call, no good checkpoint is left. pause: seconds a step
    takes longer.
    """
    import elucidiff as ed
    from elucidiff.training import checkpoint
    from elucidiff.training.watching.watch import Watcher
    from test_resume import CONFIGURATIONS

    config, data = CONFIGURATIONS[name]
    given = {"out": out, "images": images or config.images, "checkpoint_every": every}
    config = config.replace(**given | (settings or {}))
    had = False

    def look() -> None:
        nonlocal had
        if watched:
            good = any(is_good(folder) for folder in checkpoint.stored(Path(out)))
            if had and not good:
                os._exit(70)
            had = good

    crashing = Crash(Path(out), crash, Path(report) if report else None, look)

    class Steps(Watcher):
        def start(self, trainer, run):
            crashing.step = trainer.step

        def step(self, trainer, step, seconds):
            crashing.step = trainer.step
            time.sleep(pause)

    if crash is not None or report or watched:
        crashing.install()
    ed.train(config, data=data(), watchers=[Steps()], resume=True)
    crashing.finish()
    return 0


def is_good(folder: Path) -> bool:
    from elucidiff.errors import FormatError
    from elucidiff.training import checkpoint

    try:
        checkpoint.read_at(folder.parents[1], int(folder.name))
    except FormatError:
        return False
    return True


def forked(request: dict) -> int:
    """Start a process, which does what is asked and ends."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        from elucidiff.cli.main import main

        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):
            os.dup2(nowhere, standard)
        os.environ.update(request.pop("environment", {}))
        if file := request.pop("stderr", None):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        status = main(request["argv"]) if "argv" in request else trained(**request)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def waited(process: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def warm() -> None:
    """Import everything that training imports, by training."""
    import torch

    import elucidiff as ed
    from elucidiff.cli import parse, train  # noqa: F401
    from test_resume import CONFIGURATIONS

    torch.set_num_threads(1)
    importlib.import_module("torch.distributed.nn.functional")
    for name in ("edm", "augmented, labels"):
        config, data = CONFIGURATIONS[name]
        with tempfile.TemporaryDirectory() as folder:
            ed.train(config.replace(out=f"{folder}/run", images=config.batch), data=data())
    if len(threading.enumerate()) > 1:
        raise RuntimeError(f"a fork would break the threads {threading.enumerate()}")


def serve() -> None:
    sys.path.insert(0, str(TESTS))
    warm()
    running = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = forked(request["start"])
            running.add(answer)
        else:
            answer = waited(request["wait"], request["timeout"])
            running -= {request["wait"]} if answer is not None else set()
        print(json.dumps(answer), flush=True)
    for process in running:  # of tests that failed
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve()
