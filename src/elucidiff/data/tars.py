"""Tar files, read member by member: nothing is ever extracted to a name that the file chose."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from ..errors import FormatError
from .archives import MAX_MEMBER

MAX_UNPACKED = 2**30  # bytes of a compressed tar; CIFAR's have 186 MB
MAX_MEMBERS = 1000  # of a compressed tar
BLOCK = 512


class Member(NamedTuple):
    """A file in a tar: its name, where its content begins in the tar, its length in bytes, its content."""

    name: str
    offset: int
    size: int
    content: bytes


def members(path: Path) -> Iterator[Member]:
    """The files of an uncompressed tar, in its order. Raises FormatError naming the member, or what is damaged."""
    with path.open("rb") as file, _named(path), tarfile.open(fileobj=file, mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile remembers all: 1 kB a member
            if info.isdir():
                continue
            _check(info)
            file.seek(info.offset_data)
            content = file.read(info.size)
            if len(content) != info.size:
                raise FormatError(
                    f"{info.name!r} ends after {len(content):,} of {info.size:,} bytes: the tar is cut short"
                )
            yield Member(info.name, info.offset_data, info.size, content)
        # tarfile takes the first header that it cannot read for the end.
        file.seek(archive.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise FormatError(f"no end mark at byte {archive.offset:,}: cut short or damaged")


def packed(path: Path) -> Iterator[Member]:
    """The files of a .tar.gz, in its order; offsets are 0. The sum of what is unpacked is capped."""
    with gzip.open(path) as file, _named(path):
        capped = cast("IO[bytes]", _Capped(cast("IO[bytes]", file)))
        with tarfile.open(fileobj=capped, mode="r|") as archive:
            for count, info in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise FormatError(f"more than {MAX_MEMBERS:,} members")
                if info.isdir():
                    continue
                _check(info)
                content = cast("IO[bytes]", archive.extractfile(info)).read()
                yield Member(info.name, 0, info.size, content)
        while capped.read(1 << 20):  # to the end, where gzip has its checksum
            pass


class _Capped(io.RawIOBase):
    """A stream that ends in an error once it has given MAX_UNPACKED bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, MAX_UNPACKED

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise FormatError(f"unpacks to more than {MAX_UNPACKED:,} bytes")
        return content


def _check(info: tarfile.TarInfo) -> None:
    name = info.name
    if ".." in PurePosixPath(name).parts or name.startswith("/") or "\\" in name or ":" in name.split("/")[0]:
        raise FormatError(f"{name!r} leads outside the archive")
    if not info.isreg() or info.issparse():
        raise FormatError(f"{name!r} is a link, device or sparse file")
    if info.size > MAX_MEMBER:
        raise FormatError(f"{name!r} has {info.size:,} bytes; at most {MAX_MEMBER:,} are read")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of tarfile, gzip and the checks become a FormatError that names the file."""
    try:
        yield
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from error
    except Exception as error:  # tarfile raises a dozen types on damaged headers
        raise FormatError(f"{path}: not a tar file, or a damaged one ({error})") from error
