"""Errors that are neither a wrong value nor a wrong type."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FormatError(ValueError):
    """A file is not what it claims to be; the message names the file and the offence."""


class MissingExtraError(ImportError):
    """An optional dependency is absent; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; it comes with: pip install 'elucidiff[{extra}]'")


def _plain(name: str) -> str:
    """A name without what people write differently: dpm++2m, DPM++ 2M and dpmpp_2m are one."""
    return "".join(c for c in name.lower().replace("++", "pp") if c.isalnum())


def unknown(what: str, got: object, known: Iterable[str]) -> str:
    """One line for a name that does not exist: what was given, the nearest name, all names."""
    names = sorted(known)
    plain = {_plain(name): name for name in names}
    near = get_close_matches(_plain(str(got)), plain, n=1)
    hint = f"; did you mean {plain[near[0]]!r}?" if near else ""
    return f"unknown {what} {got!r}{hint} (known: {', '.join(names)})"
