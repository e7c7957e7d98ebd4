"""GGUF headers: what is in them, and what each broken one is told."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvtrove.models.gguf.header import Strings, read_header
from kvtrove.models.gguf.spec import read_gguf_spec
from kvtrove.models.spec import ModelError
from tests.gguf_bytes import ARRAY, F16, LLAMA, Q4_K, STRING, U32, gguf, string, written


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", gguf({**LLAMA, "n": [3, 1, 2]}, {"x": (Q4_K, (256, 10)), "y": (F16, (7,))}))
    header = read_header(path)
    assert header.metadata["llama.block_count"] == 32
    assert header.metadata["llama.rope.freq_base"] == 500_000.0
    assert header.metadata["n"].tolist() == [3, 1, 2]
    assert [(t.name, t.num_elements, t.nbytes) for t in header.tensors] == [("x", 2560, 1440), ("y", 7, 14)]
    assert all(tensor.start % 32 == 0 for tensor in header.tensors)


def test_strings_are_decoded_when_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", gguf({**LLAMA, "words": ["a", "äß", "", "🦁"]}))
    words = read_header(path).metadata["words"]
    assert isinstance(words, Strings)
    assert (len(words), words[1], words[-1], words[1:3], list(words)) == (
        4,
        "äß",
        "🦁",
        ["äß", ""],
        ["a", "äß", "", "🦁"],
    )


def pairs(*given: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(given)) + b"".join(given) + bytes(64)


def pair(key: str, kind: int, data: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + data


HUGE = 2**60
BROKEN = {
    "other bytes": (b"GGML" + bytes(60), r"it begins with b'GGML', not with b'GGUF'"),
    "old version": (gguf(LLAMA, version=1), "version 1 is not one of 2, 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "it is written for a big-endian machine; convert it"),
    "cut off": (
        gguf(LLAMA)[:200],
        "the GGUF header is cut off in metadata pair 4, behind 'llama.feed_forward_length'; download",
    ),
    "long text": (pairs(pair("a", STRING, struct.pack("<Q", HUGE))), "is cut off in 'a'"),
    "long key": (pairs(struct.pack("<Q", HUGE)), "is cut off in metadata pair 0"),
    "many numbers": (pairs(pair("a", ARRAY, struct.pack("<IQ", U32, HUGE))), "is cut off in 'a'"),
    "many texts": (pairs(pair("a", ARRAY, struct.pack("<IQ", STRING, HUGE))), "is cut off in 'a'"),
    "nested arrays": (pairs(pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1))), "'a' is an array of the unknown type 9"),
    "type of a value": (pairs(pair("a", 77, b"")), "'a' has the unknown type 77"),
    "many pairs": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE) + bytes(64),
        "number of metadata pairs is 1152921504606846976",
    ),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0) + bytes(64), "number of tensors is 1152921504606846976"),
    "same key": (pairs(*[pair("a", U32, bytes(4))] * 2), "its metadata has 'a' twice"),
    "empty": (b"", "not a readable GGUF file"),
    "unknown type": (gguf({}, {"t": (99, (1,))}), "tensor 't' has the unknown ggml type 99"),
    "no dimension": (gguf({}, {"t": (F16, ())}) + bytes(32), "tensor 't' has 0 dimensions, expected 1 to 4"),
    "no element": (gguf({}, {"t": (F16, (4, 0))}), r"tensor 't' has the impossible shape \[4, 0\]"),
    "overflow": (
        gguf({}, {"t": (F16, (2**40, 2**40))}),
        r"tensor 't' has the impossible shape \[1099511627776, 1099511627776\]",
    ),
    "half a block": (
        gguf({}, {"t": (Q4_K, (100, 2))}),
        r"tensor 't' has rows of 100, which blocks of 256 \(Q4_K\) do not fill",
    ),
    "alignment": (gguf({"general.alignment": 12}), "'general.alignment' is 12, expected a power of two of at least 8"),
    "no architecture": (gguf({"a": 1}), "'general.architecture' is missing from its metadata"),
    "other architecture": (
        gguf({"general.architecture": "lama"}),
        "'general.architecture' 'lama' is not supported .did you mean 'llama'",
    ),
    "nothing else": (gguf({"general.architecture": "llama"}), "'llama.block_count' is missing"),
    "no layer": (
        gguf({**LLAMA, "llama.block_count": 0}),
        "'llama.block_count' is 0, expected a whole number of at least 1",
    ),
    "a text for a number": (gguf({**LLAMA, "llama.embedding_length": "wide"}), "'llama.embedding_length' is 'wide'"),
    "too many layers": (
        gguf({**LLAMA, "llama.block_count": 2**31}),
        "'llama.block_count' is 2147483648, but there are at most 4096",
    ),
    "no sharing": (gguf({**LLAMA, "llama.attention.head_count_kv": 7}), "is not a multiple of 'num_key_value_heads' 7"),
    "rope": (
        gguf({**LLAMA, "llama.rope.scaling.type": "x", "llama.rope.scaling.factor": 2.0}),
        "'llama.rope.scaling.type' 'x'",
    ),
    "split name": (
        gguf({**LLAMA, "split.count": 3}),
        "is one of 3 parts, but its name does not end in -00001-of-00003.gguf",
    ),
    "split count": (gguf({**LLAMA, "split.count": "../x"}), "'split.count' is '../x', expected a whole number"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read_gguf_spec(written(tmp_path / "m.gguf", data))
    assert "m.gguf" in str(caught.value)


def test_parts_lie_beside_the_first_whatever_the_metadata_say(tmp_path: Path) -> None:
    path = written(tmp_path / "big-00001-of-00002.gguf", gguf({**LLAMA, "split.count": 2}))
    with pytest.raises(ModelError, match=r"big-00002-of-00002.gguf: the file is missing"):
        read_header(path)
    written(tmp_path / "big-00002-of-00002.gguf", gguf({"split.no": 7, "split.count": 2}))
    with pytest.raises(ModelError, match=r"'split.no' is 7, expected 1"):
        read_header(path)
    written(tmp_path / "big-00002-of-00002.gguf", gguf({"split.no": 1}, {"t": (F16, (4,))}))
    written(path, gguf({**LLAMA, "split.count": 2}, {"t": (F16, (4,))}))
    with pytest.raises(ModelError, match=r"tensor 't' is described twice"):
        read_header(path)


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.gguf").mkdir()
    with pytest.raises(ModelError, match=r"d\.gguf: is not a plain file"):
        read_header(tmp_path / "d.gguf")
