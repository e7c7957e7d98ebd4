"""Checkpoint files: what is written comes back, any reader of safetensors opens it, nothing damaged is restored."""

from __future__ import annotations

import contextlib
import json
from array import array
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from safetensors import safe_open

from kvtrove.kv.tiers.checkpoint import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from tests.tiers.rows import key, row

ROOT, SPEC = bytes(range(32)), bytes(range(32, 64))


def made(num_rows: int = 3, seat: bytes = b"state", tail: int = 2) -> Checkpoint:
    return Checkpoint(
        format_id="int8/1",
        fingerprint=SPEC,
        chain_root=ROOT,
        block_size=16,
        row_bytes=100,
        tokens=array("i", range(60)),
        num_computed=50,
        keys=[(i % 2, key(i)) for i in range(num_rows)],
        rows=[row(i, 100) for i in range(num_rows)],
        tail=[row(90 + i, 100) for i in range(tail)],
        seat=seat,
    )


@pytest.mark.parametrize(("num_rows", "seat", "tail"), [(3, b"state", 2), (0, b"", 0), (1, b"x", 1)])
def test_what_was_written_comes_back(tmp_path: Path, num_rows: int, seat: bytes, tail: int) -> None:
    written = made(num_rows, seat, tail)
    path = tmp_path / "conversation.safetensors"
    assert write_checkpoint(path, written) == path.stat().st_size
    back = read_checkpoint(path, format_id="int8/1", fingerprint=SPEC)
    assert [bytes(r) for r in back.rows] == [bytes(r) for r in written.rows]
    assert [bytes(r) for r in back.tail] == [bytes(r) for r in written.tail]
    assert bytes(back.seat) == seat
    same = replace(back, rows=written.rows, tail=written.tail, seat=seat)
    assert same == written
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_any_reader_of_safetensors_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, made())
    with safe_open(path, "numpy") as file:
        assert list(file.get_tensor("tokens")) == list(range(60))
        assert file.get_tensor("rows").shape == (3, 100)
        assert bytes(file.get_tensor("rows")[1]) == bytes(row(1, 100))
        assert json.loads(file.metadata()["manifest"])["num_computed"] == 50


def test_another_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, made())
    with pytest.raises(CheckpointError, match="restore it with the model and the cache settings that wrote it"):
        read_checkpoint(path, format_id="int4r/1", fingerprint=SPEC)
    with pytest.raises(CheckpointError, match="of another model"):
        read_checkpoint(path, format_id="int8/1", fingerprint=ROOT)


def test_nothing_damaged_is_restored(tmp_path: Path) -> None:
    """Every byte matters or is padding: a changed file is refused, or is the same checkpoint."""
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, made())
    good = path.read_bytes()
    original = read_checkpoint(path)
    header = 8 + int.from_bytes(good[:8], "little")
    random = Random(3)
    for trial in range(300):
        content = bytearray(good)
        kind = trial % 3
        if kind == 0:
            del content[random.randrange(len(content)) :]
        else:
            for _ in range(1 if kind == 1 else 3):
                at = random.randrange(header if trial % 2 else len(content))
                content[at] = random.randrange(256)
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            assert read_checkpoint(path, format_id="int8/1", fingerprint=SPEC) == original


HOSTILE = [
    b"",
    b"\xff" * 8,
    (2**40).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"[]",
    (2).to_bytes(8, "little") + b"{}",
    (200_000).to_bytes(8, "little") + b"[" * 200_000,
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_headers(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        read_checkpoint(path)


def test_a_shape_cannot_ask_for_more_than_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, made())
    content = path.read_bytes()
    changed = content.replace(b'"shape": [3, 100]', b'"shape": [3,1e99]')
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="has no shape"):
        read_checkpoint(path)
    changed = content.replace(b'"shape": [3, 100]', b'"shape": [9, 900]')
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="not where it should be"):
        read_checkpoint(path)


def test_what_does_not_fit_together_is_not_written(tmp_path: Path) -> None:
    for wrong, message in (
        (replace(made(), keys=[(0, key(1))]), "3 rows and 1 keys"),
        (replace(made(), rows=[row(0, 99)] * 3), "not of one size"),
        (replace(made(), num_computed=61), "not those that were computed"),
        (replace(made(), fingerprint=b"short"), "not of 32 bytes"),
    ):
        with pytest.raises(CheckpointError, match=message):
            write_checkpoint(tmp_path / "a.safetensors", wrong)
    assert not list(tmp_path.iterdir())
