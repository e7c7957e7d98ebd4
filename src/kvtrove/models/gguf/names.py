"""Names of tensors: what a family's checkpoint calls a parameter -> where it lies in a GGUF file. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""Where layers have norms on both sides of attention and MLP."""
_EXPERTS = {
    **{"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"},
    **{"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"},
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)")


@dataclass(frozen=True)
class Place:
    """Tensor `name`, or of the stacked matrices in it number `expert`."""

    name: str
    expert: int | None = None


def locate(name: str, sandwich: bool) -> Place | None:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight. None for a name that no file has."""
    module, _, kind = name.rpartition(".")
    if module in _ENDS:
        return Place(f"{_ENDS[module]}.{kind}")
    found = _LAYER.fullmatch(name)
    if not found:
        return None
    layer, module, kind = found.groups()
    if expert := _EXPERT.fullmatch(module):
        stacked = _EXPERTS.get(expert[2])
        return Place(f"blk.{layer}.{stacked}.{kind}", int(expert[1])) if stacked else None
    known = {**_MODULES, **_SANDWICH} if sandwich else _MODULES
    return Place(f"blk.{layer}.{known[module]}.{kind}") if module in known else None
