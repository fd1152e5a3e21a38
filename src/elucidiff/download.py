"""Files of the web, fetched once into a folder: resumed where a transfer broke off, never seen half."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ._version import __version__
from .errors import FormatError
from .files import sha256
from .locks import only_one

BLOCK = 1 << 20
SECONDS = 60  # without a byte
TRIES = 3  # of a transfer that breaks off; each goes on where the last one ended
Progress = Callable[[int, int], None]


def home() -> Path:
    """Where is kept what can be made again: ELUCIDIFF_CACHE, or elucidiff in XDG_CACHE_HOME, by default ~/.cache."""
    own, common = os.environ.get("ELUCIDIFF_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(common or "~/.cache").expanduser() / "elucidiff"


def is_url(text: str) -> bool:
    """Whether a text is an address that `fetched` fetches."""
    return text.lower().startswith(("http://", "https://"))


def fetched(url: str, folder: Path, progress: Progress | None = None, *, digest: str | None = None) -> Path:
    """The file of an address in `folder`, fetched if it is not there; progress(done, total) in MiB.

    What has come so far is kept in NAME.part, and is gone on with as long as the server says that the file is the
    same (its ETag or date). The file takes its name when it is complete, and has the SHA-256 `digest` where one is
    given; what has another is removed, and a file in `folder` that has another is fetched anew. Of processes that ask
    at once one fetches. Raises FormatError for an address that is none and for another SHA-256, OSError for what the
    server does not give.
    """
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rpartition("/")[2])[-100:]
    if not is_url(url) or not urlsplit(url).hostname or not name.strip("."):
        raise FormatError(f"{url}: expected an address such as https://host/path/shard-000000.tar")
    place = folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if _whole(place, digest):
        return place
    with only_one(place):
        if not _whole(place, digest):
            _with_patience(url, place, progress, digest)
    return place


def _whole(file: Path, digest: str | None) -> bool:
    return file.is_file() and digest in (None, sha256(file))


def _with_patience(url: str, place: Path, progress: Progress | None, digest: str | None) -> None:
    for attempt in range(TRIES):
        try:
            part = _transfer(url, place, progress)
            break
        except (ConnectionError, TimeoutError, ssl.SSLError, urllib.error.URLError, http.client.HTTPException) as error:
            if attempt == TRIES - 1:
                raise ConnectionError(f"{url}: broke off ({error}); begin again, and it goes on from there") from error
    if not _whole(part, digest):
        found = sha256(part)
        part.unlink()
        raise FormatError(f"{url}: what came has the SHA-256 {found}, not {digest}; it was removed")
    os.replace(part, place)


def _transfer(url: str, place: Path, progress: Progress | None) -> Path:
    """The complete transfer, still under its temporary name."""
    part, tag = place.with_name(f"{place.name}.part"), place.with_name(f"{place.name}.tag")
    have = part.stat().st_size if part.is_file() and tag.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": f"elucidiff/{__version__}"})
    if have:
        # If-Range: the rest if the file is the same as then, otherwise all of it.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag.read_text(encoding="latin-1"))
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        part.unlink(missing_ok=True)
        raise FileNotFoundError(f"{url}: the server answers {error.code} {error.reason}") from error
    with answer:
        have = have if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        _check_space(url, place.parent, (total or 0) - have)
        identity = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if identity and not identity.startswith("W/"):
            tag.write_text(identity, encoding="latin-1")
        else:
            tag.unlink(missing_ok=True)
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have >> 20, (total or have) >> 20)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have != total:
        raise ConnectionError(f"{have:,} of {total:,} bytes came")
    tag.unlink(missing_ok=True)
    return part


def _check_space(url: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{url}: {needed:,} bytes; {folder} has room for {free:,}")
