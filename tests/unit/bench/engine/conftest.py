"""A tiny model for the benchmarks of an engine, and limits that are measured in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvtrove.bench.engine import limits

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(limits, "SIDE", 16)
    monkeypatch.setattr(limits, "LEAST_SECONDS", 1e-6)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)
