"""A checkpoint with pooled heads gives the same logits here and in Hugging Face transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from kvtrove.models.heads import convert_heads
from tests.checkpoints import VOCAB, Checkpoints, make_gemma3_with_vision
from tests.golden.harness import PagedModel, expected_logits, hugging_face

TOLERANCE = 1e-4  # of float32 logits whose standard deviation is above 1, as in test_families.py
TOKENS = random.Random(0).choices(range(4, VOCAB), k=40)


@pytest.mark.parametrize("family", ["llama2", "llama_biased", "phi3", "qwen3", "olmo2", "gpt_oss"])
def test_converted_logits_are_those_of_transformers(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """MHA, biases, fused projections, norms of heads and of whole projections, sinks."""
    source = checkpoints.get(family)
    convert_heads(source, tmp_path / "made", 1)
    expected = expected_logits(hugging_face(tmp_path / "made"), TOKENS)
    got = PagedModel(tmp_path / "made").step({0: TOKENS})[0]
    assert float((got - expected).abs().max()) < TOLERANCE
    before = PagedModel(source).step({0: TOKENS})[0]
    assert float((got - before).abs().max()) > 0.1, "pooling random heads changes much"


def test_of_a_checkpoint_that_sees_the_language_model_is_converted(tmp_path: Path) -> None:
    make_gemma3_with_vision(tmp_path / "source")
    convert_heads(tmp_path / "source", tmp_path / "made", 1)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    got = PagedModel(tmp_path / "made").step({0: TOKENS})[0]
    assert float((got - expected_logits(whole, TOKENS)).abs().max()) < TOLERANCE
