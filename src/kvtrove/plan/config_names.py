"""The language model's part of a config.json under one set of names, and the keys that no plan understands.

Architectures call the same thing by many names. Some keys say that a layer keeps something other than keys and values
of its tokens, or that layers differ in a way that only their own code knows. Such a config is refused by that key,
because a number planned in silence would be wrong by the factor in which layers differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kvtrove.models.config_view import ConfigView
from kvtrove.plan.quantized import KEYS as QUANTIZED

ALIASES: Mapping[str, Sequence[str]] = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model", "hidden_dim"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num", "num_attention_groups"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "seq_length", "max_seq_len", "max_sequence_length", "model_max_length"),
    "vocab_size": ("padded_vocab_size",),
    "head_dim": ("attention_head_dim", "kv_channels"),
    "n_routed_experts": ("num_experts", "num_local_experts", "moe_num_experts"),
    "num_experts_per_tok": ("top_k_experts", "moe_topk", "num_experts_per_token", "moe_top_k"),
}
NESTED = ("attn_config", "ffn_config")
"""Sections whose keys stand beside the others in most architectures (DBRX, MPT)."""
_STATE = re.compile(
    r"mamba|ssm|rwkv|lru_width|^state_size|recurrent|^linear_(?!scaling)|linear_attn|conv_L|short_conv|kda_|^full_attn_idxs$"
    r"|^attention_hidden_size$|^mb_per_layer$"
)
_WHICH_LAYERS = re.compile(
    r"(attn|attention|global|local|full|sliding|swa|window|hybrid).*(pattern|every|interval|idx|ids|layers|types|list|ratio)"
)
_SHARING = re.compile(r"kv_shared|kv_reuse|share_factor|^use_cla$|kv_share")
_PLAIN = """
    apertus arcee baichuan bloom chatglm cohere cohere2 dbrx deepseek_v2 deepseek_v3 deepseek_v32 ernie4_5 ernie4_5_moe
    exaone exaone4 falcon gemma gemma2 gemma3 glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss granite granitemoe
    internlm2 kimi_k2 llama llama4 minicpm minicpm3 mistral mixtral mpt nemotron nemotron-nas olmo olmo2 olmo3 olmoe opt
    phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2 step3"""
PLAIN = frozenset(_PLAIN.split())
"""Model types whose layers cache what the usual keys say. Others are read in the same way, and the plan says so."""
UNDERSTOOD = frozenset(
    {
        *("layer_types", "sliding_window_pattern", "max_window_layers", "global_attn_every_n_layers"),
        *("hybrid_layer_pattern", "cross_attention_layers", "attn_type_list", "full_attention_interval"),
    }
)
"""Keys that say which layers differ and that `geometry` reads."""


def canonical(view: ConfigView) -> ConfigView:
    """The language model's part of a config under Hugging Face's usual names."""
    if view.has("text_config"):
        inherited = {key: view.values[key] for key in ("dtype", "torch_dtype", *QUANTIZED) if view.has(key)}
        text = view.section("text_config")
        view = ConfigView({**inherited, **text.values}, text.where)
    sections = [view.section(key).values for key in NESTED if isinstance(view.get(key), dict)]
    values = {key: value for section in sections for key, value in section.items()} | dict(view.values)
    for name, others in ALIASES.items():
        found = next((values[key] for key in (name, *others) if values.get(key) is not None), None)
        if found is not None:
            values[name] = found
    return ConfigView(values, view.where)


def refuse_states(view: ConfigView) -> None:
    """ModelError naming the key of a config whose layers keep a running state, or whose model has an encoder."""
    for key, value in view.values.items():
        listed = isinstance(value, list) and key != "layer_types"  # whose kinds `geometry` knows
        kinds = [kind for kind in value if isinstance(kind, str)] if listed else []
        if value not in (None, False, [], {}) and (_STATE.search(key) or any(map(_STATE.search, kinds))):
            raise view.error(f"{key!r}: recurrent layers keep a state, which is not planned")
    if 0 in view.get("attn_type_list", []):  # MiniMax: 0 is linear attention
        raise view.error("'attn_type_list' has layers of linear attention, which keep a state that is not planned")
    if view.flag("is_encoder_decoder", False):
        raise view.error("'is_encoder_decoder': the cache of a model with an encoder is not planned")


def refuse_unknown_patterns(view: ConfigView) -> None:
    """ModelError naming a key that tells layers apart in a way that is not known."""
    for key in sorted(view.values.keys() - UNDERSTOOD):
        if view.get(key) in (None, False, 0, [], {}):
            continue
        if _SHARING.search(key):
            raise view.error(f"{key!r}: how layers of this model type share their cache is not known, so not planned")
        if _WHICH_LAYERS.search(key) and (view.get("sliding_window") or view.get("attention_chunk_size")):
            raise view.error(f"{key!r}: which layers have a window is said in a way that is not known, so not planned")
