"""docs/models.md: every figure of its table of families, computed from the config of the model that it names.

Configs hold the keys that a cache depends on, as the models' own config.json has them, over a small rest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kvtrove.plan.capacity import readable
from kvtrove.plan.kv import cache_of, kv_bytes
from kvtrove.plan.source import read_model
from tests.unit.plan import configs

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
REST: dict[str, Any] = {
    **{"torch_dtype": "bfloat16", "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 64},
    **{"vocab_size": 32_000, "max_position_embeddings": 131_072, "rope_parameters": None, "head_dim": 128},
}


def heads(layers: int, kv_heads: int, head_dim: int | None = 128, **keys: Any) -> dict[str, Any]:
    return {**REST, "num_hidden_layers": layers, "num_key_value_heads": kv_heads, "head_dim": head_dim, **keys}


def delta(layers: int, kv_heads: int, value_heads: int, **keys: Any) -> dict[str, Any]:
    linear = {"linear_num_key_heads": 16, "linear_num_value_heads": value_heads, "linear_conv_kernel_dim": 4}
    dims = {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "full_attention_interval": 4}
    return heads(layers, kv_heads, 256, **linear, **dims, **keys)


EXAMPLES: dict[str, dict[str, Any]] = {
    "Ministral 3 8B": heads(34, 8, model_type="ministral3"),
    "Qwen3-8B": configs.QWEN3_8B,
    "GLM-4.5-Air": heads(46, 8, model_type="glm4_moe", num_attention_heads=96),
    "Gemma 3 12B": heads(48, 8, 256, model_type="gemma3_text", num_attention_heads=16, sliding_window=1024),
    "gpt-oss-20b": heads(
        *(24, 8, 64), model_type="gpt_oss", num_attention_heads=64, sliding_window=128, num_local_experts=32
    ),
    "Gemma 3n E2B": heads(
        *(30, 2, 256), model_type="gemma3n_text", num_attention_heads=8, num_kv_shared_layers=10, sliding_window=512
    ),
    "Gemma 4 E2B": configs.GEMMA4_E2B,
    "Gemma 4 31B": heads(
        *(60, 16, 256),
        **{"model_type": "gemma4_text", "global_head_dim": 512, "num_global_key_value_heads": 4},
        **{"attention_k_eq_v": True, "sliding_window": 1024, "hidden_size_per_layer_input": 0},
    ),
    "Llama 4 Scout": heads(
        *(48, 8), model_type="llama4_text", num_attention_heads=40, attention_chunk_size=8192, num_local_experts=16
    ),
    "Hunyuan Large": heads(
        *(64, 8), model_type="hunyuan_v1_moe", num_attention_heads=80, use_cla=True, num_experts=16, moe_topk=1
    ),
    "DeepSeek-V3": configs.DEEPSEEK_V3,
    "GLM-4.7-Flash": {
        **configs.DEEPSEEK_V3,
        "architectures": None,
        "model_type": "glm4_moe_lite",
        "num_hidden_layers": 47,
    },
    "16 layers of Llama 3 8B's heads, 8 with a window of 1,024": heads(
        16, 8, model_type="yoco", sliding_window=1024, num_self_decoder_layers=8
    ),
    "16 layers of Llama 3 8B's heads, 4 that store": heads(16, 8, model_type="mlkv", num_key_value_layers=4),
    "LFM2 1.2B": heads(
        *(16, 8, 64),
        **{"model_type": "lfm2", "hidden_size": 2048, "conv_L_cache": 3, "conv_bias": False},
        layer_types=["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
    ),
    "Qwen3-Next 80B-A3B": delta(48, 2, 32, model_type="qwen3_next", num_attention_heads=16),
    "Qwen3.5 9B": delta(32, 4, 32, model_type="qwen3_5_text", num_attention_heads=16),
    "Qwen3.5 27B": delta(64, 4, 48, model_type="qwen3_5_text", num_attention_heads=24),
    "Granite 4.0 H Small": heads(
        *(40, 8),
        **{"model_type": "granitemoehybrid", "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_d_state": 128},
        **{"num_local_experts": 72, "num_experts_per_tok": 10, "shared_intermediate_size": 64},
        layer_types=["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)],
    ),
}


def rows() -> dict[str, list[str]]:
    """Example -> bytes per token, of windows, of states, of the table of families."""
    table = PAGE.read_text().partition("## What each family caches\n")[2].partition("\n\n###")[0].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return {row[2]: row[3:] for row in cells[2:]}


def size(nbytes: int) -> str:
    """As prose writes it: 320 MiB."""
    return re.sub(r"(\d)([KMG])", r"\1 \2", readable(nbytes))


def test_every_example_of_the_page_is_computed_here() -> None:
    assert rows().keys() == EXAMPLES.keys()


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_page_says_what_the_planner_computes(example: str, tmp_path: Path) -> None:
    cache = cache_of(read_model(configs.write(tmp_path, EXAMPLES[example]).parent), "auto", 16)
    found, (token, windows, states) = kv_bytes(cache), rows()[example]
    assert int(re.sub(r"\D", "", token)) == found.per_token
    assert windows == (size(found.constant) if found.constant else "-")
    tokens = round(cache.mark_bytes / found.per_token)
    assert states == (f"{size(cache.mark_bytes)} = {tokens:,} tokens" if tokens else "-")
