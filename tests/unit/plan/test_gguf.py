"""Plans of GGUF files from their headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvtrove.cli.main import app
from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.models.spec import ModelError
from kvtrove.plan.kv import KVBytes, cache_of, kv_bytes
from kvtrove.plan.source import read_model
from tests.gguf_bytes import F16, LLAMA, Q4_K, gguf, written


def test_a_gguf_is_planned_like_its_config(tmp_path: Path) -> None:
    model = read_model(written(tmp_path / "m.gguf", gguf(LLAMA)))
    assert kv_bytes(cache_of(model, "bf16", 32)) == KVBytes(131_072, 0)
    assert (model.vocab_size, model.max_position, model.num_layers) == (5000, 131_072, 32)
    assert model.spec is not None, "the engine runs it"


OTHER = {key.replace("llama", "other"): x for key, x in LLAMA.items()} | {"general.architecture": "other"}
"""An architecture that is planned, though the engine does not run it."""


def test_weights_are_what_the_tensors_take(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": (F16, (4096, 100)),
        "output.weight": (F16, (4096, 100)),
        "blk.0.ffn_gate_exps.weight": (Q4_K, (256, 64, 8)),
    }
    model = read_model(written(tmp_path / "m.gguf", gguf({**OTHER, "other.block_count": 1}, tensors)))
    assert model.weight_bytes == 2 * 4096 * 100 * 2 + 256 * 64 * 8 // 256 * 144
    assert model.parameters.experts == 256 * 64 * 8
    assert model.parameters.every_token == 4096 * 100, "the embedding is a lookup, the output matrix is not"
    assert model.exact_weights


def test_a_directory_of_ggufs_and_a_split_model(tmp_path: Path) -> None:
    for part in (1, 2):
        data = gguf({**OTHER, "split.count": 2}, {f"t{part}": (F16, (10,))})
        written(tmp_path / f"big-{part:05}-of-00002.gguf", data)
    assert read_model(tmp_path).weight_bytes == 40


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "big-00001-of-00002.gguf", gguf({**LLAMA, "split.count": 2}))
    with pytest.raises(ModelError, match=r"big-00002-of-00002.gguf: the file is missing"):
        read_model(path)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"attention.sliding_window_pattern": [True, True, False]}, [SlidingWindow(64), SlidingWindow(64), Full()]),
        ({"attention.sliding_window_pattern": 3}, [SlidingWindow(64), SlidingWindow(64), Full()]),
        ({}, [SlidingWindow(64)] * 3),
        ({"attention.sliding_window": 0}, [Full()] * 3),
    ],
)
def test_sliding_layers_are_found(changes: dict[str, Any], rules: list[Any], tmp_path: Path) -> None:
    """Where a Gemma-3 file says nothing, every sixth layer is full, as llama.cpp has it: none of three."""
    named = {key.replace("llama.", "gemma3."): x for key, x in LLAMA.items()} | {"general.architecture": "gemma3"}
    named |= {"gemma3.block_count": 3, "gemma3.attention.sliding_window": 64}
    model = read_model(written(tmp_path / "m.gguf", gguf(named | {f"gemma3.{k}": x for k, x in changes.items()})))
    assert [layer.retention for layer in model.layers] == rules


def test_a_latent_is_found(tmp_path: Path) -> None:
    named = {key.replace("llama.", "deepseek2."): x for key, x in LLAMA.items()} | {"general.architecture": "deepseek2"}
    named |= {
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.rope.dimension_count": 64,
        "deepseek2.block_count": 61,
    }
    named |= {"deepseek2.attention.key_length": 192, "deepseek2.attention.value_length": 128}
    path = written(tmp_path / "m.gguf", gguf(named, {"t": (F16, (100,))}))
    assert kv_bytes(cache_of(read_model(path), "bf16", 32)) == KVBytes(70_272, 0)


def test_a_quantised_file_is_planned_as_it_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"token_embd.weight": (Q4_K, (4096, 100)), "blk.0.ffn_down.weight": (Q4_K, (14_336, 4096))}
    path = written(tmp_path / "m.gguf", gguf({**LLAMA, "llama.block_count": 1}, tensors))
    assert read_model(path).weight_bytes == (4096 * 100 + 14_336 * 4096) // 32 * 24
    with pytest.raises(SystemExit):
        app(["plan", str(path), "--memory", "4GiB", "--kv", "64MiB", "--context", "256"])
    assert "gguf, bfloat16 rest" in capsys.readouterr().out
