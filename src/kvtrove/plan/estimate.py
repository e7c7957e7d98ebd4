"""How many parameters a config.json implies for an architecture that the engine does not run.

DeepSeek (V2, V3, V3.2, Kimi K2) is counted tensor by tensor; for every other architecture the large matrices of the
usual decoder are added up, and what is left out (norms, positions, adapters) makes the plan say "about".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtrove.kv.spec import LayerKV
from kvtrove.models.config_view import ConfigView
from kvtrove.plan.parameters import Parameters

UNGATED = frozenset(
    {"gpt2", "opt", "bloom", "mpt", "falcon", "gpt_neox", "gpt_bigcode", "starcoder2", "phi", "stablelm_epoch"}
)
"""Model types whose feed-forward networks have two matrices instead of three."""
EXACT = frozenset({"deepseek_v2", "deepseek_v3", "kimi_k2"})
TIED = frozenset(
    {"gpt2", "opt", "bloom", "mpt", "falcon", "gpt_bigcode", "gemma", "gemma3n", "gemma4", "cohere", "cohere2", "afm7"}
)
"""Model types whose output matrix is the embedding unless the config says otherwise."""


@dataclass(frozen=True)
class Experts:
    """Mixture of experts of some layers; num 0 is none. `sparse[i]`: whether layer i has it."""

    num: int
    top_k: int
    width: int
    shared_width: int
    sparse: Sequence[bool]


def read_experts(view: ConfigView) -> Experts:
    count = view.size("num_hidden_layers")
    num = view.size("n_routed_experts", 0, least=0)
    if not num:
        return Experts(0, 0, 0, 0, [False] * count)
    width = view.size("moe_intermediate_size", view.size("expert_ffn_hidden_size", view.size("intermediate_size")))
    shared = view.size("n_shared_experts", view.size("num_shared_expert", 0, least=0), least=0) * width
    if model_type(view) == "llama4":
        shared = width
    first, every = view.size("first_k_dense_replace", 0, least=0), view.size("moe_layer_freq", 1)
    step = view.size("decoder_sparse_step", view.size("interleave_moe_layer_step", 1))
    dense = set(view.get("mlp_only_layers", []))
    sparse = [i >= first and i % every == 0 and (i + 1) % step == 0 and i not in dense for i in range(count)]
    return Experts(
        num,
        view.size("num_experts_per_tok", 1),
        width,
        view.size("shared_expert_intermediate_size", shared, least=0),
        sparse,
    )


def estimate_parameters(view: ConfigView, layers: Sequence[LayerKV], experts: Experts) -> Parameters:
    hidden, vocab = view.size("hidden_size"), view.size("vocab_size")
    kind = model_type(view)
    matrices = 2 if kind in UNGATED else 3
    embedding = vocab * hidden
    tied = view.flag("tie_word_embeddings", kind in TIED)
    per_layer = _per_layer_inputs(view, len(layers))
    attention = sum(_latent(view) if view.has("kv_lora_rank") else _attention(view, layer) for layer in layers)
    norms = hidden + 2 * hidden * len(layers)
    widths = dense_widths(view, layers)
    dense = sum(matrices * hidden * width for width, sparse in zip(widths, experts.sparse, strict=True) if not sparse)
    num_sparse = sum(experts.sparse)
    routers = num_sparse * experts.num * hidden
    shared = num_sparse * 3 * hidden * experts.shared_width
    routed = num_sparse * experts.num * 3 * hidden * experts.width
    every_token = embedding + attention + norms + dense + routers + shared  # the output matrix, tied or not
    total = every_token + routed + per_layer + (0 if tied else embedding)
    return Parameters(total, every_token, routed, replicated=norms + routers)


def dense_widths(view: ConfigView, layers: Sequence[LayerKV]) -> list[int]:
    """Width of each layer's feed-forward network, as if none had experts."""
    hidden = view.size("hidden_size")
    usual = int(hidden * view.number("hidden_dim_scale_factor", 4.0))
    width = view.get("intermediate_size_mlp", view.get("intermediate_size", usual))
    widths = list(width) if isinstance(width, list) else [int(width)] * len(layers)
    if len(widths) != len(layers):
        raise view.error(f"'intermediate_size' has {len(widths)} entries, expected 'num_hidden_layers' = {len(layers)}")
    doubled = view.flag("use_double_wide_mlp", False)  # Gemma 4: where a layer computes no keys and values
    return [2 * w if doubled and layer.source is not None else w for w, layer in zip(widths, layers, strict=True)]


def model_type(view: ConfigView) -> str:
    return str(view.get("model_type", "")).removesuffix("_text")


def _attention(view: ConfigView, layer: LayerKV) -> int:
    hidden, heads = view.size("hidden_size"), view.size("num_attention_heads")
    own = 0 if layer.source is not None else layer.heads * (layer.k_dim + layer.v_dim)
    return hidden * (heads * layer.k_dim + own + heads * layer.v_dim)


def _latent(view: ConfigView) -> int:
    """The projections of MLA (arXiv 2405.04434, section 2.1), their norms and, for sparse attention, the indexer."""
    hidden, heads = view.size("hidden_size"), view.size("num_attention_heads")
    rank, rope = view.size("kv_lora_rank"), view.size("qk_rope_head_dim")
    plain, value = view.size("qk_nope_head_dim"), view.size("v_head_dim")
    queries = heads * (plain + rope)
    q_rank = view.get("q_lora_rank")
    query = hidden * q_rank + q_rank + q_rank * queries if q_rank else hidden * queries
    keys = hidden * (rank + rope) + rank + rank * heads * (plain + value)
    index = view.size("index_head_dim", 0, least=0)
    indexer = 0
    if index:
        index_heads = view.size("index_n_heads")
        indexer = (q_rank or hidden) * index_heads * index + hidden * index + 2 * index + hidden * index_heads
    return query + keys + heads * value * hidden + indexer


def _per_layer_inputs(view: ConfigView, count: int) -> int:
    """Gemma 3n and 4 add a small embedding per layer: a lookup table as wide as all of them together."""
    width = view.size("hidden_size_per_layer_input", 0, least=0)
    hidden = view.size("hidden_size")
    table = view.size("vocab_size_per_layer_input", view.size("vocab_size")) if width else 0
    return count * width * (table + hidden) + count * 2 * width * hidden
