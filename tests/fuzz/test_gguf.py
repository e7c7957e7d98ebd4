"""Mutated GGUF files: read or refused by name, and never more memory than twice the file's size.

`python -m tests.fuzz.test_gguf` runs all 2,000; pytest every tenth, and what once failed.
"""

from __future__ import annotations

import random
import struct
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvtrove.models.gguf.checkpoint import GGUFCheckpoint
from kvtrove.models.gguf.header import read_header
from kvtrove.models.gguf.spec import spec_of
from kvtrove.models.spec import ModelError, ModelSpec
from kvtrove.plan.source import read_model
from tests.checkpoints import Checkpoints, checkpoints
from tests.gguf_files import write_gguf

__all__ = ["checkpoints"]
ALL = range(2000)
SEEDS = (*ALL[::10], 407)
OVERHEAD = 1 << 20
"""Bytes that objects of Python take however small a file is."""
INTERESTING = (0, 1, 7, 8, 9, 10, 11, 255, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def sources(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, int]]:
    return made_from(checkpoints, tmp_path_factory.mktemp("gguf"))


def made_from(checkpoints: Checkpoints, directory: Path) -> list[tuple[bytes, int]]:
    """Files of three architectures, and where their data begin."""
    made = []
    for family, kind in (("llama3", "Q8_0"), ("gemma3", "F16"), ("mixtral", "Q4_0")):
        path = write_gguf(checkpoints.get(family), directory / f"{family}.gguf", kind)
        made.append((path.read_bytes(), min(tensor.start for tensor in read_header(path).tensors)))
    return made


def mutated(data: bytes, header: int, seed: int) -> bytes:
    """One to four changes within the header, of kinds that parsers fall over: lengths, counts, types, cuts."""
    draw, changed = random.Random(seed), bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(max(1, min(header, len(changed)) - 8))
        match draw.randrange(6):
            case 0:
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at : at + 8] = struct.pack("<Q", draw.choice(INTERESTING))
            case 2:
                changed[at : at + 4] = struct.pack("<I", draw.choice(INTERESTING) & 0xFFFFFFFF)
            case 3:
                del changed[at : at + draw.randrange(1, 40)]
            case 4:
                changed[at:at] = draw.randbytes(draw.randrange(1, 40))
            case 5:
                del changed[draw.randrange(len(changed)) :]
                changed += bytes(64)
    return bytes(changed)


def opened(path: Path) -> tuple[GGUFCheckpoint, ModelSpec]:
    """What a start and `kvtrove plan` do with a file before weights are converted."""
    spec = spec_of(read_header(path))
    read_model(path)
    return GGUFCheckpoint(path), spec


def convert(checkpoint: GGUFCheckpoint, spec: ModelSpec) -> None:
    checkpoint.read("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size))
    width = spec.num_heads * spec.layers[0].cache.k_dim
    checkpoint.read("model.layers.0.self_attn.q_proj.weight", (width, spec.hidden_size))


def run(seeds: Sequence[int], sources: list[tuple[bytes, int]], path: Path) -> Counter[str]:
    """How many were read and refused. AssertionError names the seed that takes too much, or fails without a name."""
    seen: Counter[str] = Counter()
    for data, _ in sources:  # what is imported or cached once counts for no file
        path.write_bytes(data)
        convert(*opened(path))
    tracemalloc.start()
    try:
        for seed in seeds:
            data, header = sources[seed % len(sources)]
            path.write_bytes(data := mutated(data, header, seed))
            tracemalloc.reset_peak()
            before, error = tracemalloc.get_traced_memory()[0], ""
            try:
                found = opened(path)
            except ModelError as refused:
                error = str(refused)
            taken = tracemalloc.get_traced_memory()[1] - before
            assert taken <= 2 * len(data) + OVERHEAD, f"seed {seed}: {taken} bytes for a file of {len(data)}"
            if not error:
                try:
                    convert(*found)
                except ModelError as refused:
                    error = str(refused)
            seen["refused" if error else "read"] += 1
            assert not error or path.name in error, f"seed {seed}: {error}"
    finally:
        tracemalloc.stop()
    return seen


def test_a_mutated_header_is_refused_or_read_within_its_size(sources: list[tuple[bytes, int]], tmp_path: Path) -> None:
    seen = run(SEEDS, sources, tmp_path / "m.gguf")
    assert seen["refused"] > len(SEEDS) // 2
    assert seen["read"] > len(SEEDS) // 20, "some changes, of names that nobody asks for, do no harm"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(run(ALL, made_from(Checkpoints(Path(scratch)), Path(scratch)), Path(scratch) / "m.gguf"))
