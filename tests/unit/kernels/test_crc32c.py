"""CRC-32C: the vectors of the standard, and the instruction against the tables."""

from __future__ import annotations

import mmap
import random

import pytest

from kvtrove.kernels import _extension, crc32c


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_vectors_of_the_standard(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert _extension().crc32c(data, 0, True) == expected


@pytest.mark.parametrize("size", [1, 7, 8, 767, 768, 769, 12_287, 12_288, 12_289, 3 * 12_288 + 777, 100_001])
def test_the_instruction_agrees_with_the_tables(size: int) -> None:
    """Sizes around the borders of the streams (3 x 256 and 3 x 4096 bytes) and odd beginnings."""
    data = random.Random(size).randbytes(size + 3)
    for start in (0, 1, 3):
        part = memoryview(data)[start : start + size]
        assert crc32c(part) == _extension().crc32c(part, 0, True)
        assert crc32c(part[size // 3 :], crc32c(part[: size // 3])) == crc32c(part)


def test_any_contiguous_bytes_will_do() -> None:
    with mmap.mmap(-1, 4096) as pages:
        assert crc32c(pages) == crc32c(bytearray(4096)) == crc32c(bytes(4096))
    with pytest.raises(BufferError):
        crc32c(memoryview(bytes(100))[::2])
    with pytest.raises(TypeError):
        crc32c("text")  # type: ignore[arg-type]
