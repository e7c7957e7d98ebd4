"""The metadata of a GGUF file -> ModelSpec, for the architectures that the engine runs. No torch."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families import find_family
from kvtrove.models.gguf.architectures import Config, find_architecture, own_metadata
from kvtrove.models.gguf.config import as_config
from kvtrove.models.gguf.header import GGUFHeader, TensorInfo, map_file, read_header
from kvtrove.models.spec import ModelError, ModelSpec

_END_TOKENS = ("eos", "eot", "eom")
"""`tokenizer.ggml.*_token_id`: of a text, a turn, and a message that waits for a tool."""


def read_gguf_spec(path: Path) -> ModelSpec:
    """The model in a GGUF file (of a split one the first part). ModelError names the file and the key."""
    return spec_of(read_header(path))


def spec_of(header: GGUFHeader, *, factors: bool = True) -> ModelSpec:
    """factors: read those of rotary embeddings, which are tensors; a header alone does without."""
    architecture = find_architecture(header)
    kind, where = header.architecture, str(header.path)
    view = ConfigView(header.metadata, where)
    config = as_config(header)
    names = {tensor.name for tensor in header.tensors}
    if "moe_intermediate_size" in config:  # not all files of models without other networks give theirs, too
        config.setdefault("intermediate_size", config["moe_intermediate_size"])
    for name, key in _NEEDED.items():
        if name not in config:
            raise ModelError(f"{where}: '{kind}.{key}' is missing from its metadata")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", max(1, config["hidden_size"] // config["num_attention_heads"]))
    config |= {
        "architecture": architecture.family,
        "rms_norm_eps": view.number(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_theta": view.number(f"{kind}.rope.freq_base", 10_000.0),
        "tie_word_embeddings": bool(names) and "output.weight" not in names,
        "eos_token_id": _end_tokens(view),
        "bos_token_id": view.get("tokenizer.ggml.bos_token_id"),
        "rope_scaling": _rope_scaling(header, view, factors),
        "attention_k_eq_v": any(
            name.replace("attn_k.", "attn_v.") not in names for name in names if ".attn_k." in name
        ),
        "use_qk_norm": any(name.endswith("attn_q_norm.weight") for name in names),
    }
    architecture.more(own_metadata(header), config)
    for name, key in _NEEDED.items():
        if isinstance(config[name], list):
            raise ModelError(f"{where}: '{kind}.{key}' differs between layers, which is not supported")
    spec = find_family(config["architecture"]).spec(ConfigView(config, where))
    if not names:
        return spec
    biased = {name.rpartition(".bias")[0].rpartition(".")[2] for name in names}
    return replace(
        spec,
        attention_bias="attn_q" in biased,
        output_bias="attn_output" in biased,
        mlp_bias="ffn_down" in biased,
    )


_YARN = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
_NEEDED = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
}


def _end_tokens(view: ConfigView) -> list[int]:
    keys = (f"tokenizer.ggml.{name}_token_id" for name in _END_TOKENS)
    return list(dict.fromkeys(view.size(key, least=0) for key in keys if view.has(key)))


def _rope_scaling(header: GGUFHeader, view: ConfigView, factors: bool) -> Config | None:
    """Frequencies that were searched or computed beforehand are tensors: LongRoPE, and Llama 3 in its terms."""
    prefix = f"{header.architecture}.rope.scaling"
    context = view.size(f"{header.architecture}.context_length")
    original = view.size(f"{prefix}.original_context_length", context)
    tensors = {tensor.name: tensor for tensor in header.tensors if tensor.name.startswith("rope_f")}
    short = tensors.get("rope_factors_short.weight", tensors.get("rope_freqs.weight"))
    if short is not None:
        long = tensors.get("rope_factors_long.weight", short)
        attention = view.number(f"{prefix}.attn_factor", 1.0)
        if not factors:
            return None
        return {
            **{"rope_type": "longrope", "short_factor": _floats(short), "long_factor": _floats(long)},
            **{"attention_factor": attention, "factor": 1.0, "original_max_position_embeddings": original},
        }
    kind = view.get(f"{prefix}.type", "none")
    factor = view.number(f"{prefix}.factor", view.number(f"{header.architecture}.rope.scale_linear", 1.0))
    if factor in (0.0, 1.0):
        return None
    if kind in ("linear", "none"):
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise view.error(f"'{prefix}.type' {kind!r} is not supported; supported: none, linear, yarn, longrope")
    scaling: Config = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name, key in _YARN.items():
        if (value := view.optional_number(f"{prefix}.{key}")) is not None:
            scaling[name] = value
    return scaling


def _floats(tensor: TensorInfo) -> list[float]:
    """A small F32 tensor, read from its file."""
    data = map_file(tensor.file)
    if tensor.type.name != "F32" or tensor.start + tensor.nbytes > len(data):
        raise ModelError(f"{tensor.file}: tensor {tensor.name!r} is no complete F32 tensor; download the file again")
    return list(struct.unpack_from(f"<{tensor.num_elements}f", data, tensor.start))
