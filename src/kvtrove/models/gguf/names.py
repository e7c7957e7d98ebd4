"""Names of tensors: what the decoder calls a parameter -> where it lies in a GGUF file. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_ENDS |= {
    "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_model_projection": "per_layer_model_proj",
    "model.per_layer_projection_norm": "per_layer_proj_norm",
}
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
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "conv.conv": "shortconv.conv",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "mamba.in_proj": "ssm_in",
    "altup.correction_coefs": "altup_correct_coef",
    "altup.prediction_coefs": "altup_predict_coef",
    "altup.modality_router": "altup_router",
    "altup.router_norm": "altup_router_norm",
    "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r",
    "laurel.post_laurel_norm": "laurel_post_norm",
}
_MODULES |= {
    f"{mixer}.{ours}": theirs
    for mixer in ("linear_attn", "mamba")
    for ours, theirs in {"conv1d": "ssm_conv1d", "norm": "ssm_norm", "out_proj": "ssm_out"}.items()
}
_VECTORS = {
    "self_attn.sinks": "attn_sinks.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.gate.scale": "ffn_gate_inp.scale",
    "mlp.gate.expert_scale": "ffn_down_exps.scale",
    "layer_scalar": "layer_output_scale.weight",
    **dict.fromkeys(("linear_attn.A_log", "mamba.A_log"), "ssm_a"),
    **dict.fromkeys(("linear_attn.dt_bias", "mamba.dt_bias"), "ssm_dt.bias"),
    "mamba.D": "ssm_d",
    "altup.correct_output_scale": "altup_correct_scale.weight",
}
"""Parameters that are no weight or bias of a module."""
_POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""Where a norm behind attention is called so, whatever it stands before."""
_EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
_EXPERTS |= {"gate_up_proj": "ffn_gate_up_exps"}
_STACKS = {"model.altup_projections": "altup_proj", "model.altup_unembed_projections": "altup_unembd_proj"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(\w+)")


@dataclass(frozen=True)
class Place:
    """Tensor `name`, or of the stacked matrices in it number `expert`, of experts or others."""

    name: str
    expert: int | None = None


def locate(name: str, post_norms: bool) -> Place | None:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight. None for a name that no file has."""
    module, _, kind = name.rpartition(".")
    if module in _ENDS:
        return Place(f"{_ENDS[module]}.{kind}")
    stack, _, number = module.rpartition(".")
    if stack in _STACKS and number.isdecimal():
        return Place(f"{_STACKS[stack]}.{kind}", int(number))
    found = _LAYER.fullmatch(name)
    if not found:
        return None
    layer, parameter = found.groups()
    if parameter in _VECTORS:
        return Place(f"blk.{layer}.{_VECTORS[parameter]}")
    module, _, kind = parameter.rpartition(".")
    if expert := _EXPERT.fullmatch(module):
        stacked = _EXPERTS.get(expert[2])
        return Place(f"blk.{layer}.{stacked}.{kind}", int(expert[1])) if stacked else None
    known = {**_MODULES, **_POST_NORMS} if post_norms else _MODULES
    return Place(f"blk.{layer}.{known[module]}.{kind}") if module in known else None
