"""Architectures that the engine does not run: who keeps keys and values, who reads them elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from kvtrove.kv.retention import ChunkedLocal, Full, SlidingWindow
from kvtrove.kv.spec import LayerKV
from kvtrove.models.config_view import ConfigView
from kvtrove.models.spec import ModelError
from kvtrove.plan.config_names import canonical
from kvtrove.plan.geometry import read_layers
from tests.unit.plan import configs

_PLAIN: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}


def layers(config: dict[str, Any], **changes: Any) -> tuple[LayerKV, ...]:
    return read_layers(canonical(ConfigView({**config, **changes}, "config.json")))


def sources(config: dict[str, Any], **changes: Any) -> list[int | None]:
    return [layer.source for layer in layers(config, **changes)]


def test_gemma_4_shares_by_kind() -> None:
    """15 producers; sliding readers use layer 13, full ones layer 14."""
    read = sources(configs.GEMMA4_E2B)
    assert read[:15] == [None] * 15
    assert read[15:] == [13, 13, 13, 13, 14] * 4


def test_gemma_3n_shares_by_kind_with_heads_of_one_size() -> None:
    config = {**configs.GEMMA4_E2B["text_config"], "model_type": "gemma3n_text", "num_key_value_heads": 2}
    found = layers(config)
    assert {layer.k_dim for layer in found} == {256}
    assert found[-1].source == 14


def test_no_shared_layers_means_that_all_keep_their_own() -> None:
    assert sources(configs.GEMMA4_E2B["text_config"], num_kv_shared_layers=0) == [None] * 35


def test_gemma_4_global_heads_differ_when_keys_are_values() -> None:
    found = layers(configs.GEMMA4_E2B["text_config"], attention_k_eq_v=True, num_global_key_value_heads=4)
    assert (found[4].heads, found[4].k_dim, found[0].heads) == (4, 512, 1)


def test_sharing_needs_a_producer_of_each_kind() -> None:
    with pytest.raises(ModelError, match=r"'num_kv_shared_layers' leaves no full_attention layer"):
        layers(configs.GEMMA4_E2B["text_config"], num_kv_shared_layers=31)


@pytest.mark.parametrize(("use_cla", "expected"), [(True, [None, 0, None, 2]), (False, [None] * 4)])
def test_hunyuan_shares_in_groups_when_it_says_so(use_cla: bool, expected: list[int | None]) -> None:
    assert sources(_PLAIN, model_type="hunyuan", use_cla=use_cla, cla_share_factor=2) == expected


def test_afm_reads_the_last_own_layer() -> None:
    read = sources(configs.AFM_3B)
    assert read == [None] * 35 + [34] * 21


def test_afm_needs_a_layer_of_its_own() -> None:
    with pytest.raises(ModelError, match="'num_kv_reuse_layers' leaves no layer"):
        layers(configs.AFM_3B, num_kv_reuse_layers=56)


def test_mimo_has_other_heads_where_a_window_slides() -> None:
    found = layers(
        {**_PLAIN, "model_type": "mimo_v2_flash", "hybrid_layer_pattern": [0, 1, 1, 0], "sliding_window": 128},
        **{"head_dim": 64, "v_head_dim": 32, "swa_num_key_value_heads": 4, "swa_v_head_dim": 16},
    )
    full, slides = (2, 64, 32, Full()), (4, 64, 16, SlidingWindow(128))
    assert [(x.heads, x.k_dim, x.v_dim, x.retention) for x in found] == [full, slides, slides, full]


def test_searched_layers_have_heads_of_their_own_or_none() -> None:
    blocks = [{"attention": {"n_heads_in_group": n, "no_op": n is None}} for n in (8, None, 4, None)]
    found = layers(_PLAIN, num_key_value_heads=None, block_configs=blocks)
    assert [layer.heads for layer in found] == [1, 0, 2, 0]


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_config": {"kv_n_heads": 2}},
        {"num_attention_groups": 2},
        {"multi_query_group_num": 2},
        {"n_head_kv": 2},
    ],
)
def test_heads_under_other_names(keys: dict[str, Any]) -> None:
    found = layers(_PLAIN, num_key_value_heads=None, **keys)
    assert {layer.heads for layer in found} == {2}


@pytest.mark.parametrize(
    ("keys", "full"),
    [
        ({"sliding_window_pattern": "LLG"}, [2]),
        ({"sliding_window_pattern": 2}, [1, 3]),
        ({"max_window_layers": 3}, [0, 1, 2]),
        ({"global_attn_every_n_layers": 3}, [0, 3]),
        ({}, []),
    ],
)
def test_layers_that_see_everything(keys: dict[str, Any], full: list[int]) -> None:
    found = layers(_PLAIN, sliding_window=128, **keys)
    assert [i for i, layer in enumerate(found) if layer.retention == Full()] == full


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"linear_attn_config": {"kda_layers": [1]}}, "linear_attn_config"),
        ({"attn_type_list": [0, 0, 0, 1]}, "attn_type_list"),
        ({"full_attn_idxs": [2], "conv_L_cache": 3}, "full_attn_idxs"),
        ({"layers_block_type": ["mamba", "hybrid"] * 2}, "layers_block_type"),
        ({"mamba_step": 2, "mamba_enabled": True}, "mamba_step"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"attention_pattern": ["local", "global"] * 2, "sliding_window": 128}, "attention_pattern"),
        ({"full_attention_every": 4, "sliding_window": 128}, "full_attention_every"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers"),
        ({"sliding_window_pattern": "LLX", "sliding_window": 128}, "sliding_window_pattern"),
    ],
)
def test_layers_that_no_plan_understands_are_refused_by_their_key(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=repr(named)):
        layers(_PLAIN, **keys)


def test_a_latent_is_one_head_without_values() -> None:
    found = layers(configs.DEEPSEEK_V3)
    assert {(x.heads, x.k_dim, x.v_dim, x.format.v) for x in found} == {(1, 576, 512, None)}


def test_sparse_attention_adds_its_index_keys() -> None:
    """DeepSeek-V3.2: 128 bytes in fp8 and a float32 scale per token."""
    assert layers(configs.DEEPSEEK_V3, index_head_dim=128)[0].format.extra_bytes == 132


def test_llama_4_sees_chunks_but_in_every_fourth_layer() -> None:
    rules = [layer.retention for layer in layers(_PLAIN, model_type="llama4_text", attention_chunk_size=1024)]
    assert rules == [ChunkedLocal(1024)] * 3 + [Full()]
    rules = [x.retention for x in layers(_PLAIN, attention_chunk_size=1024, no_rope_layers=[0, 1, 1, 1])]
    assert rules == [Full()] + [ChunkedLocal(1024)] * 3


def test_windows_follow_layer_types_or_the_pattern() -> None:
    types = ["sliding_attention", "full_attention"] * 2
    rules = [layer.retention for layer in layers(_PLAIN, sliding_window=128, layer_types=types)]
    assert rules == [SlidingWindow(128), Full()] * 2
    rules = [layer.retention for layer in layers(_PLAIN, sliding_window=128, sliding_window_pattern=4)]
    assert rules == [SlidingWindow(128)] * 3 + [Full()]
    assert layers(_PLAIN, sliding_window=128)[3].retention == SlidingWindow(128)
    assert layers(_PLAIN, sliding_window=128, use_sliding_window=False)[0].retention == Full()
    assert layers(_PLAIN, sliding_window=8192)[0].retention == Full(), "no context reaches beyond the window"


def test_older_names_and_multi_query() -> None:
    gpt = {
        "model_type": "gpt_bigcode",
        "n_layer": 2,
        "n_embd": 64,
        "n_head": 4,
        "multi_query": True,
        "n_positions": 1024,
    }
    assert [(x.layer, x.heads, x.k_dim, x.v_dim) for x in layers(gpt)] == [(0, 1, 16, 16), (1, 1, 16, 16)]
    assert [x.heads for x in layers(_PLAIN, num_key_value_heads=[1, 2, 4, 8])] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, "'num_hidden_layers' is missing"),
        ({"num_attention_heads": 0}, "'num_attention_heads' is 0, expected a whole number of at least 1"),
        ({"layer_types": ["full_attention"]}, "'layer_types' has 1 entries, expected 'num_hidden_layers' = 4"),
        ({"layer_types": ["linear_attention"] * 4}, "layer type 'linear_attention' keeps a state that is not planned"),
        ({"num_key_value_heads": [2, 2]}, "'num_key_value_heads' has 2 entries, expected 4"),
        ({"mamba_d_state": 16}, "'mamba_d_state': recurrent layers keep a state, which is not planned"),
    ],
)
def test_what_cannot_be_planned_names_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        layers(_PLAIN, **changes)
