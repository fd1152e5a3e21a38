"""Writing so that a crash loses nothing, and noticing damage when reading."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePath

from .errors import FormatError

MANIFEST = "manifest.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which hides the file from others on a shared disk
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


@contextmanager
def file_written_atomically(path: Path) -> Iterator[Path]:
    """Fill a new file under a temporary, hidden name beside `path`; it takes its name when complete.

    Raises FileExistsError when `path` is taken, by then too: nothing is overwritten.
    """
    _refuse_taken(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        _fsync_file(temporary)
        _refuse_taken(path)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


@contextmanager
def folder_written_atomically(path: Path) -> Iterator[Path]:
    """Fill a new folder under a temporary name beside `path`; it takes its name when complete.

    A manifest with the SHA-256 of every file is added last. Raises FileExistsError when `path` is
    taken by anything but an empty folder: nothing is overwritten.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        names = sorted(p.relative_to(temporary).as_posix() for p in temporary.rglob("*") if p.is_file())
        manifest = {"sha256": {name: sha256(temporary / name) for name in names}}
        write_atomically(temporary / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        for name in names:
            _fsync_file(temporary / name)
        os.chmod(temporary, 0o755)
        put_in_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def put_in_place(folder: Path, path: Path) -> None:
    """Give a complete folder its name, on the same disk. Raises OSError where `path` is a folder that is not empty."""
    if path.is_dir():
        path.rmdir()  # fails unless it is empty
    os.rename(folder, path)
    _fsync_folder(path.parent)


def refuse_existing(path: Path) -> None:
    """Raise FileExistsError when `path` is a file or a folder with something in it."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and would be overwritten; name another place or remove it")


def _refuse_taken(path: Path) -> None:
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; a file of that name is to be written: name another place")
    refuse_existing(path)


def check_manifest(folder: Path, aside: Sequence[str] = ()) -> None:
    """Compare every file of a folder with its manifest; files that match a pattern of `aside` need not be listed.

    Raises FormatError naming the first that differs.
    """
    try:
        recorded = json.loads((folder / MANIFEST).read_bytes())["sha256"]
        items = sorted((str(name), str(digest)) for name, digest in recorded.items())
    except FileNotFoundError:
        raise FormatError(f"{folder}: {MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{folder / MANIFEST}: not a manifest ({error})") from error
    for name, digest in items:
        file, plain = folder / name, PurePath(name)
        if plain.anchor or ".." in plain.parts:  # a file may be a link: the hub's cache is made of them
            raise FormatError(f"{folder / MANIFEST}: {name!r} is outside the folder")
        if not file.is_file():
            raise FormatError(f"{folder}: {name} is missing")
        if sha256(file) != digest:
            raise FormatError(f"{file}: its content is not what was written (SHA-256 differs)")
    extra = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    listed = {name for name, _ in items}
    for name in (n for n in extra if n not in listed and not any(fnmatch(n, pattern) for pattern in aside)):
        raise FormatError(f"{folder}: {name} is not in {MANIFEST}")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fsync_folder(path: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
