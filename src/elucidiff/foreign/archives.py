"""Torch files of the zip format: stored members only, each checked by its CRC, each byte in one member only."""

from __future__ import annotations

import itertools
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from .meanings import Meanings
from .pickles import Machine
from .records import Storage, clip
from .storages import fill, new_storage, part, persistent_id

MEMBERS = 100_000
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Member:
    """One member of an archive: where its bytes are."""

    name: str
    start: int
    size: int
    crc: int


def members(view: memoryview) -> dict[str, Member]:
    """The members of a zip, by name.

    Raises FormatError for a member that is compressed, encrypted, a link or a folder out of the archive, for
    two of one name, for members that share bytes, and for headers that contradict the directory.
    """
    count, size, start = _directory(view)
    if count > MEMBERS or size > len(view) or start > len(view) - size:
        raise FormatError(f"has a directory of {count:,} members and {size:,} bytes, which is outside the file")
    found: dict[str, Member] = {}
    spans: list[tuple[int, int]] = []
    position = start
    for _ in range(count):
        member, header, position = _entry(view, position, start + size)
        if member.name in found:
            raise FormatError(f"has two members of the name {clip(member.name)}")
        found[member.name] = member
        spans.append((header, member.start + member.size))
    spans.sort()
    if any(end > following for (_, end), (following, _) in itertools.pairwise(spans)):
        raise FormatError("has members that share bytes")
    if spans and spans[-1][1] > start:
        raise FormatError("has a member that runs into the directory")
    return found


def _directory(view: memoryview) -> tuple[int, int, int]:
    """(members, bytes, position) of the central directory."""
    tail = bytes(view[-(_END.size + 65535) :])
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise FormatError("ends without a directory: it is cut short, or no zip")
    _, disk, first_disk, _, count, size, start, comment = _END.unpack_from(tail, at)
    if disk or first_disk or at + _END.size + comment != len(tail):
        raise FormatError("has a directory in parts, or bytes after its end")
    if 0xFFFF in (count,) or 0xFFFFFFFF in (size, start):
        count, size, start = _directory64(view, len(view) - len(tail) + at)
    return count, size, start


def _directory64(view: memoryview, end: int) -> tuple[int, int, int]:
    if end < _LOCATOR.size:
        raise FormatError("has no directory of the large form where one is announced")
    magic, _, at, _ = _LOCATOR.unpack_from(view, end - _LOCATOR.size)
    if magic != b"PK\x06\x07" or at > end - _LOCATOR.size - _END64.size:
        raise FormatError("has no directory of the large form where one is announced")
    magic, *_, count, size, start = _END64.unpack_from(view, at)
    if magic != b"PK\x06\x06":
        raise FormatError("has no directory of the large form where one is announced")
    return count, size, start


def _entry(view: memoryview, position: int, end: int) -> tuple[Member, int, int]:
    """The member that the directory describes at a position, where its header is, and the next position."""
    if position > end - _ENTRY.size:
        raise FormatError("has a directory that is shorter than it says")
    (magic, made, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, disk, _, mode,
     header) = _ENTRY.unpack_from(view, position)  # fmt: skip
    following = position + _ENTRY.size + n_name + n_extra + n_comment
    if magic != b"PK\x01\x02" or following > end:
        raise FormatError("has a broken directory")
    name = _checked_name(bytes(view[position + _ENTRY.size : position + _ENTRY.size + n_name]))
    extra = bytes(view[position + _ENTRY.size + n_name : following - n_comment])
    size, packed, header = _large_sizes(extra, size, packed, header)
    if method != 0 or packed != size:
        raise FormatError(f"holds {clip(name)} compressed; torch files store their members as they are")
    if flags & 0x2041 or disk:
        raise FormatError(f"holds {clip(name)} encrypted or in parts")
    if made >> 8 == 3 and stat.S_IFMT(mode >> 16) not in (0, stat.S_IFREG):
        raise FormatError(f"holds {clip(name)}, which is a link or no regular file")
    return Member(name, _content(view, header, name, size), size, crc), header, following


def _checked_name(raw: bytes) -> str:
    name = raw.decode("utf-8")
    parts = name.split("/")
    if not name or any(p in ("", ".", "..") for p in parts) or "\\" in name or "\0" in name or ":" in parts[0]:
        raise FormatError(f"has a member with the name {clip(name)}")
    return name


def _large_sizes(extra: bytes, *values: int) -> list[int]:
    """(size, packed, header), those of which are 0xFFFFFFFF taken from the extra field of the large form."""
    position, found = 0, list(values)
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        field = extra[position + 4 : position + 4 + length]
        if kind == 1:
            for i, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    found[i], field = struct.unpack_from("<Q", field)[0], field[8:]
        position += 4 + length
    return found


def _content(view: memoryview, header: int, name: str, size: int) -> int:
    """Where a member's bytes begin."""
    if header > len(view) - _LOCAL.size:
        raise FormatError(f"has {clip(name)} outside the file")
    magic, _, flags, method, _, _, _, _, _, n_name, n_extra = _LOCAL.unpack_from(view, header)
    start = header + _LOCAL.size + n_name + n_extra
    same = bytes(view[header + _LOCAL.size : header + _LOCAL.size + n_name]) == name.encode()
    if magic != b"PK\x03\x04" or method != 0 or flags & 0x2041 or not same:
        raise FormatError(f"has a header of {clip(name)} that contradicts its directory")
    if size > len(view) - start:
        raise FormatError(f"has {clip(name)} with {size:,} bytes where {max(len(view) - start, 0):,} are left")
    return start


def content(view: memoryview, member: Member) -> memoryview:
    """A member's bytes. Raises FormatError when they are not those that were written."""
    raw = view[member.start : member.start + member.size]
    if zlib.crc32(raw) != member.crc:
        raise FormatError(f"holds {clip(member.name)} damaged (its CRC differs)")
    return raw


def read_zip(view: memoryview, meanings: Meanings) -> Any:
    """The object of a torch file of the zip format. Raises FormatError."""
    found = members(view)
    roots = {name.split("/")[0] for name in found}
    root = next(iter(roots)) if len(roots) == 1 else ""
    if f"{root}/data.pkl" not in found:
        raise FormatError("is a zip without data.pkl in its only folder: no torch file")
    if f"{root}/constants.pkl" in found or any(name.startswith(f"{root}/code/") for name in found):
        raise FormatError("is a TorchScript program; expected weights")
    order = found.get(f"{root}/byteorder")
    if order and bytes(content(view, order)) != b"little":
        raise FormatError("was written on a big-endian machine, which is not supported")
    storages: dict[str, Storage] = {}

    def storage(value: Any) -> Storage:
        dtype, key, numel, viewed = persistent_id(value)
        if key not in storages:
            member = found.get(f"{root}/data/{key}")
            if member is None:
                raise FormatError(f"lacks the storage {clip(key)}")
            new = new_storage(dtype, numel, member.size, meanings.budget)
            fill(new, content(view, member))
            storages[key] = new
        known = storages[key]
        if (known.flat.dtype, known.flat.numel()) != (dtype, numel):
            raise FormatError(f"names the storage {clip(key)} twice with different types or lengths")
        return known if viewed is None else part(known, viewed)

    raw = content(view, found[f"{root}/data.pkl"])
    machine = Machine(raw, meanings, 0, storage)
    value = machine.run()
    if machine.position != len(raw):
        raise FormatError(f"has {len(raw) - machine.position:,} bytes after the end of data.pkl")
    return value
