"""int8 and int4 weights as the planner counts them and as they are packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from kvtrove.models.config_reader import read_spec
from kvtrove.models.layers.packed import PackedLinear
from kvtrove.models.loader import load_model
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from kvtrove.models.spec import ModelSpec
from kvtrove.plan.parameters import count_parameters
from kvtrove.plan.source import read_model
from tests.checkpoints import Checkpoints
from tests.unit.plan import configs


def test_quantised_weights_cost_their_numbers_and_their_scales(tmp_path: Path) -> None:
    """int8 with a float32 per output, int4 with two float16 for 32 inputs; embedding, norms and biases as they were."""
    config = configs.write(tmp_path, configs.LLAMA_31_8B)
    plain, quantised, four_bits = (read_model(config, weights=kind) for kind in ("auto", "int8", "int4"))
    hidden, inner, narrow, vocab = 4096, 14336, 1024, 128256
    matrices = 32 * (2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * inner) + vocab * hidden
    outputs = 32 * (3 * hidden + 2 * narrow + 2 * inner) + vocab
    assert quantised.weight_bytes == plain.weight_bytes - 2 * matrices + matrices + 4 * outputs
    assert four_bits.weight_bytes == plain.weight_bytes - 2 * matrices + matrices * 5 // 8
    assert (quantised.dtype, quantised.activations) == ("bfloat16", "float32")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe", "gemma3", "phi3", "mixtral", "llama_biased"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights_are_planned_as_they_are_packed(
    kind: str, family: str, tied: bool, checkpoints: Checkpoints
) -> None:
    """Up to what fills the last panels up, biases and norms in float32, and an embedding that is tied."""
    directory = checkpoints.get(family, dtype="bfloat16", tie_word_embeddings=tied)
    precision = Precision("bfloat16", "float32", kind)
    model = load_model(directory, read_spec(directory), Products(precision))
    linear = {id(part): part for part in containers(model) if isinstance(part, PackedLinear)}.values()
    packed = [part for part in linear if part.weights.kind == kind]  # routers stay in the checkpoint's numbers
    elements = sum(part.weights.outputs * part.weights.inputs for part in packed)
    outputs = sum(part.weights.outputs for part in packed)
    counted = count_parameters(read_spec(directory))
    assert (counted.matrices, counted.outputs) == (elements, outputs)
    assert counted.groups == sum(part.weights.outputs * -(-part.weights.inputs // 32) for part in packed)
    planned = read_model(directory, weights=kind)
    assert planned.weight_bytes == counted.nbytes(precision)


def containers(part: object) -> Iterator[object]:
    """The part and every container of weights below it, each once."""
    yield part
    items = part if isinstance(part, tuple | list) else getattr(part, "__dict__", {}).values()
    for item in items if not isinstance(part, PackedLinear | Tensor | ModelSpec) else ():
        yield from containers(item)
