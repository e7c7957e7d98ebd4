"""Blocks of every type that is read become the floats that the `gguf` library makes of them, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from kvtrove.models.gguf.dequantize import READERS, dequantize
from kvtrove.models.gguf.tensor_types import TYPES
from kvtrove.models.spec import ModelError

NUMBERS = {kind.name: number for number, kind in TYPES.items()}


@pytest.mark.parametrize("name", READERS)
def test_random_blocks_give_the_bits_of_the_reference(name: str) -> None:
    rng = np.random.default_rng(NUMBERS[name])
    blocks = rng.integers(0, 256, (600, TYPES[NUMBERS[name]].nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random scales overflow
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(NUMBERS[name]))
        got = dequantize(name, blocks)
    assert got.dtype == np.float32
    finite = np.isfinite(expected)
    assert finite.mean() > 0.9
    assert np.array_equal(got[finite].view(np.uint32), expected[finite].view(np.uint32))


def test_the_sizes_of_blocks_are_those_of_the_library() -> None:
    theirs = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}
    ours = {number: (kind.elements, kind.nbytes) for number, kind in TYPES.items() if kind.name != "Q8_1"}
    assert ours == {number: theirs[number] for number in ours}  # 36 bytes of Q8_1 are ggml's; nobody stores it


def test_an_unknown_type_is_named_with_those_that_are_read() -> None:
    with pytest.raises(ModelError, match="type IQ2_XXS is not read; supported: F32, F16, BF16, Q4_0"):
        dequantize("IQ2_XXS", np.zeros((1, 66), np.uint8))
