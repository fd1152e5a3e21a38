"""The entry point: arguments as people type them, commands, and errors of one or two lines."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .._version import __version__
from . import commands

app = typer.Typer(
    name="elucidiff",
    help="The design space of diffusion models: train, sample and measure, every choice replaceable.",
    epilog="Options for every command: --debug shows tracebacks; --plugin FILE.py adds your own schedules, solvers, "
    "preconditionings (the file is executed).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for _name, _command in commands.ALL.items():
    app.command(name=_name)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"elucidiff {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False) -> None:
    pass


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 failed, 2 wrong use; `train` has two more, see `_code`."""
    sys.exit(main(list(sys.argv[1:] if argv is None else argv)))


def main(argv: list[str]) -> int:
    """Run the command line; the exit code."""
    debug = "--debug" in argv
    try:
        arguments, plugins = _expanded([a for a in argv if a != "--debug"])
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            for plugin in plugins:
                _load_plugin(Path(plugin))
            result = app(arguments, prog_name="elucidiff", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if debug:
            raise
        return _fail(_message(error), _code(error))


def _fail(message: str, code: int) -> int:
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    print("error: " + "\n".join(lines[:2]), file=sys.stderr)
    return code


def _message(error: Exception) -> str:
    if hasattr(error, "format_message"):  # usage errors of the command-line parser
        return f"{error.format_message()} (see elucidiff --help)"
    text = str(error) or type(error).__name__
    if isinstance(error, (KeyError, AttributeError, IndexError, AssertionError)):
        return f"{type(error).__name__}: {text}. This is a bug in elucidiff; --debug shows where"
    return text


def _code(error: Exception) -> int:
    """2 for wrong use, 3 for a run of which no checkpoint is good, 85 for one that stopped and can go on, else 1.

    Within torchrun the one that stopped ends with 0: it would be started again at once. RUN/stopped says it there.
    """
    stopped = 0 if "TORCHELASTIC_RUN_ID" in os.environ else 85
    own = {"NoGoodCheckpoint": 3, "TrainingStopped": stopped}  # by name: importing them would import torch
    return own.get(type(error).__name__, 2 if _is_wrong_use(error) else 1)


def _is_wrong_use(error: Exception) -> bool:
    """Whether the user's input was at fault. MissingExtraError and failures of the machine are not wrong use."""
    if hasattr(error, "format_message"):
        return True
    return isinstance(error, (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError))


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _expanded(argv: list[str]) -> tuple[list[str], list[str]]:
    """Arguments for the parser, and plugins: `--set a=1 b=2` becomes `--set a=1 --set b=2`."""
    arguments: list[str] = []
    plugins: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--plugin" or word.startswith("--plugin="):
            name = word.partition("=")[2] or (words.pop(0) if words else "")
            if not name:
                raise ValueError("--plugin: expected a Python file")
            plugins.append(name)
        elif word == "--set":
            if not words or words[0].startswith("-") or "=" not in words[0]:
                raise ValueError(
                    f"--set: got {words[0] if words else 'nothing'!r}; expected name=value, e.g. solver=heun"
                )
            while words and "=" in words[0] and not words[0].startswith("-"):
                arguments += ["--set", words.pop(0)]
        else:
            arguments.append(word)
    return arguments, plugins


def _load_plugin(path: Path) -> None:
    """Execute a Python file that the user named, for the components it defines."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such plugin file")
    spec = importlib.util.spec_from_file_location(f"elucidiff_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: a plugin is a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that annotations of the plugin's classes can be resolved
    spec.loader.exec_module(module)
