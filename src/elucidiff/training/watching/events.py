"""Event files as TensorBoard reads them, written without it: numbers and pictures over images seen.

A file is a list of records, each its length, a check of the length, the content, a check of the content (TFRecord);
the content is a protocol buffer of the message `tensorflow.Event`, of which only what is used here is written.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Mapping
from pathlib import Path

POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), bits reversed
VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types of protocol buffers


class EventFile:
    """A new event file in a folder. Every record reaches the file system at once: a page that is open follows."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._file = (folder / f"events.out.tfevents.{now:017.6f}.elucidiff").open("xb")
        self._write(_field(1, DOUBLE, now) + _field(3, BYTES, b"brain.Event:2"))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, in single precision, as TensorBoard keeps them."""
        entries = (_field(1, BYTES, name.encode()) + _field(2, FLOAT, value) for name, value in values.items())
        self._summary(step, b"".join(_field(1, BYTES, entry) for entry in entries))

    def picture(self, step: int, name: str, png: bytes) -> None:
        """One picture, a PNG file."""
        width, height, _, colours = struct.unpack(">IIBB", png[16:26])  # its first chunk, IHDR
        channels = {0: 1, 4: 2, 6: 4}.get(colours, 3)
        image = b"".join(_field(i, VARINT, n) for i, n in enumerate((height, width, channels), start=1))
        image += _field(4, BYTES, png)
        self._summary(step, _field(1, BYTES, _field(1, BYTES, name.encode()) + _field(4, BYTES, image)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _summary(self, step: int, summary: bytes) -> None:
        self._write(_field(1, DOUBLE, time.time()) + _field(2, VARINT, step) + _field(5, BYTES, summary))

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _check(length) + event + _check(event))
        self._file.flush()


def crc32c(content: bytes) -> int:
    """CRC-32C, at 5 MB/s: a sheet of samples takes 2 to 40 ms."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _check(content: bytes) -> bytes:
    """The masked CRC of TFRecord: rotated right by 15 bits, plus a constant."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@functools.cache
def _table() -> tuple[int, ...]:
    def entry(byte: int) -> int:
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        return byte

    return tuple(entry(byte) for byte in range(256))


def _field(number: int, kind: int, value: float | bytes) -> bytes:
    """One field of a protocol buffer: its key, and the value in the form of its wire type."""
    key = _varint(number << 3 | kind)
    if isinstance(value, bytes):
        return key + _varint(len(value)) + value
    if kind == VARINT:
        return key + _varint(int(value))
    return key + struct.pack("<d" if kind == DOUBLE else "<f", _single(value) if kind == FLOAT else value)


def _single(value: float) -> float:
    """The value, infinite where single precision ends."""
    try:
        struct.pack("<f", value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    parts = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])
