"""Tensors of tiny checkpoints as llama.cpp's converters write them: names of the `gguf` library, rows in its order.

Rows of Q and K in the order of interleaved rotary pairs (Llama), 1 added to norm weights (Gemma, Qwen3-Next), stacked
experts, decays out of their logarithm, rope factors as tensors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

PERMUTED = ("llama", "smollm3", "granite", "granitemoe", "granitehybrid", "mistral3")
DELTA = ("qwen3next", "qwen35")
UNNAMED = ("correct_output_scale", "layer_scalar", "experts.gate_up_proj", "experts.down_proj")
"""Ends of names of parameters that become weights."""
MODELS = {name: model for model, name in gguf.MODEL_ARCH_NAMES.items()}


def of_full_layers(config: dict[str, Any], key: str, default: int) -> int:
    """A size that full layers of Gemma 4 have of their own."""
    if "per_layer_config" not in config:
        return default
    index = str(config["layer_types"].index("full_attention"))
    return config["per_layer_config"].get(index, {}).get(key, default)


def tensors(directory: Path, arch: str, config: dict[str, Any]) -> list[tuple[str, NDArray[np.float32]]]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    names = gguf.get_tensor_name_map(MODELS[arch], config["num_hidden_layers"])
    tensors: dict[str, torch.Tensor] = {}
    for name, value in _converted(_stacked(found), config).items():
        if arch in PERMUTED and (".q_proj." in name or ".k_proj." in name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        wide = arch in ("gemma2", "gemma3", *DELTA) and not name.endswith("linear_attn.norm.weight")
        if wide and name.endswith("norm.weight"):
            value = value + 1
        if arch == "qwen35" and ".linear_attn." in name:
            value = _tiled(name, value, config)
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None or name.endswith(".scale"), name
        tensors[known or name] = value
    rope = config.get("rope_parameters", {})
    if arch == "gemma4":
        half = of_full_layers(config, "head_dim", 0) // 2
        turning = int(half * rope["full_attention"]["partial_rotary_factor"])
        tensors["rope_freqs.weight"] = torch.tensor([1.0] * turning + [1e30] * (half - turning))
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(rope, config)
    if rope.get("rope_type") == "longrope":
        for which in ("long", "short"):
            tensors[f"rope_factors_{which}.weight"] = torch.tensor(rope[f"{which}_factor"])
    return [(name, np.ascontiguousarray(value.numpy(), dtype=np.float32)) for name, value in tensors.items()]


def _converted(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What converters split, turn or rename."""
    result: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        head, _, part = name.rpartition(".mlp.experts.")
        if "router.scale" in name or "per_expert_scale" in name:
            layer = name.split(".")[2]
            result[f"blk.{layer}.ffn_{'gate_inp' if 'router.scale' in name else 'down_exps'}.scale"] = value
            continue
        if ".feed_forward.experts." in name:  # llama4
            parts = value.transpose(1, 2).chunk(2, dim=1) if "gate_up" in name else [value.transpose(1, 2)]
            modules = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
            start = name.rpartition(".")[0]
            result |= {f"{start}.{module}.weight": rows for module, rows in zip(modules, parts, strict=True)}
            continue
        stack, _, number = name.removesuffix(".weight").rpartition(".")
        if stack.endswith(("altup_projections", "altup_unembed_projections")):
            before = result.get(f"{stack}.weight", value.new_empty(0, *value.shape))
            assert len(before) == int(number)
            result[f"{stack}.weight"] = torch.cat([before, value[None]])
            continue
        if (
            name.endswith(("correct_output_scale", "layer_scalar", "experts.gate_up_proj", "experts.down_proj"))
            and not head
        ):
            result[f"{name}.weight"] = value
            continue
        if part.removesuffix("_bias") in ("gate_up_proj", "down_proj"):  # gpt-oss: gate and up take turns
            kind = "bias" if part.endswith("_bias") else "weight"
            value = value if kind == "bias" else value.transpose(1, 2)
            parts = {"gate_proj": value[:, ::2], "up_proj": value[:, 1::2]}
            for module, rows in parts.items() if "gate_up" in part else {"down_proj": value}.items():
                result[f"{head}.mlp.experts.{module}.{kind}"] = rows
        elif name.endswith("block_sparse_moe.input_linear.weight"):
            inner = config["intermediate_size"]
            head = name.removesuffix("input_linear.weight")
            result |= {f"{head}experts.w1.weight": value[:, :inner], f"{head}experts.w3.weight": value[:, inner:]}
        elif name.endswith("shared_mlp.input_linear.weight"):
            gate, up = value.chunk(2)
            beside = "mlp.shared_expert" if config["num_local_experts"] else "mlp"
            head = name.replace("shared_mlp.input_linear.weight", beside)
            result |= {f"{head}.gate_proj.weight": gate, f"{head}.up_proj.weight": up}
        elif name.endswith("shared_mlp.output_linear.weight") and not config["num_local_experts"]:
            result[name.replace("shared_mlp.output_linear", "mlp.down_proj")] = value
        elif name.endswith("kv_b_proj.weight"):
            sizes = [config["qk_nope_head_dim"], config["v_head_dim"]]
            keys, values = value.view(-1, sum(sizes), value.shape[-1]).split(sizes, dim=1)
            result[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(1, 2)
            result[name.replace("kv_b_proj", "v_b_proj")] = values
        elif name.endswith(("conv.conv.weight", "conv1d.weight")):
            result[name] = value.squeeze(1)
        elif name.endswith("A_log"):
            result[name] = -value.exp()
        elif name.endswith("dt_bias"):
            result[name.replace("dt_bias", "dt_proj.bias")] = value
        elif "in_proj_qkvz" in name:
            q, k, v, z = _of_key_heads(value, config)
            result[name.replace("in_proj_qkvz", "in_proj_qkv")] = torch.cat([q, k, v])
            result[name.replace("in_proj_qkvz", "in_proj_z")] = z
        elif name.endswith("mamba.norm.weight"):
            result[name] = value.view(config["mamba_n_groups"], -1)
        else:
            result[f"{name}.weight" if name.endswith("sinks") else name] = value
    return result


def _of_key_heads(qkvz: torch.Tensor, config: dict[str, Any]) -> list[torch.Tensor]:
    """Rows of q, k, v and z of Qwen3-Next, which lie side by side for each key head."""
    heads, width = config["linear_num_key_heads"], config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
    parts = qkvz.view(heads, -1, qkvz.shape[-1]).split([width, width, values, values], dim=1)
    return [part.flatten(0, 1) for part in parts]


def _tiled(name: str, value: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """Qwen 3.5: the first value heads of all key heads, then the second ones."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    width = config["linear_value_head_dim"]
    if "out_proj" in name:
        return value.unflatten(1, (keys, -1, width)).swapaxes(1, 2).flatten(1, 3)
    before = 2 * keys * config["linear_key_head_dim"] if "in_proj_qkv" in name or "conv1d" in name else 0
    if ".norm." in name:
        return value
    moved = value[before:].unflatten(0, (keys, values // keys, -1)).swapaxes(0, 1).flatten(0, 2)
    return torch.cat([value[:before], moved])


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts of a layer as one tensor: ...experts.0.w1.weight, ...experts.1.w1.weight -> ...experts.w1.weight"""
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    rest = {}
    for name, value in tensors.items():
        before, _, after = name.partition(".experts.")
        if not after[:1].isdigit():
            rest[name] = value
            continue
        number, _, module = after.partition(".")
        stacks.setdefault(f"{before}.experts.{module}", {})[int(number)] = value
    return rest | {name: torch.stack([of[i] for i in sorted(of)]) for name, of in stacks.items()}


def _llama3_factors(rope: dict[str, Any], config: dict[str, Any]) -> torch.Tensor:
    """What each frequency is divided by, as the converter computes it from the wavelengths."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    waves = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    smooth = ((original / waves - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
