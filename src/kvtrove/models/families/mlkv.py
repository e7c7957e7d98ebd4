"""MLKV, multi-layer key-value heads (arXiv 2406.09297): runs of layers read the keys and values of their first one.

Keys of config.json are Llama's, and `num_key_value_layers`, how many layers store; it divides the number of layers.
Tensors have Llama's names, and layers that store nothing have neither `k_proj` nor `v_proj`. With one kv head, several
layers have one together. Tokens of a prompt that nobody asks about end before the last run.
"""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import FULL, Family, biases, build_layers, build_spec, read_heads, sharing_in_runs
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import ModelSpec


def read(view: ConfigView) -> ModelSpec:
    heads, count = read_heads(view), view.size("num_hidden_layers")
    stored = view.size("num_key_value_layers", count)
    if count % stored:
        raise view.error(f"'num_key_value_layers' {stored} does not divide 'num_hidden_layers' {count}")
    layers = build_layers(view, heads, [FULL] * count, {FULL: read_rope(view, heads.dim)}, None)
    return build_spec(view, "mlkv", heads, sharing_in_runs(layers, count // stored), **biases(view))


FAMILIES = {"MlkvForCausalLM": Family(read)}
