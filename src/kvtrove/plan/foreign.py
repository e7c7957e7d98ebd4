"""Models that the engine does not run: planned from their config or GGUF header alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvtrove.kv.spec import DTYPE_BYTES
from kvtrove.models.config_view import ConfigView
from kvtrove.models.spec import ModelError
from kvtrove.plan import gguf
from kvtrove.plan.estimate import EXACT, dense_widths, estimate_parameters, model_type, read_experts
from kvtrove.plan.geometry import canonical, read_layers
from kvtrove.plan.model import PlanModel
from kvtrove.plan.parameters import Parameters


def from_config(values: ConfigView, name: str, architecture: str | None, dtype: str) -> PlanModel:
    """values: a config.json, or what a GGUF header says in its words. dtype: "auto" takes the checkpoint's own."""
    view = canonical(values)
    layers, experts = read_layers(view), read_experts(view)
    parameters = estimate_parameters(view, layers, experts)
    stored = str(view.get("dtype", view.get("torch_dtype", "bfloat16"))).removeprefix("torch.")
    dtype = (stored if stored in DTYPE_BYTES else "bfloat16") if dtype == "auto" else dtype
    bits, exact = _weight_bits(view, dtype)
    widths = [width for width, sparse in zip(dense_widths(view, layers), experts.sparse, strict=True) if not sparse]
    return PlanModel(
        name=name,
        architecture=architecture or model_type(view) or "unknown",
        dtype=dtype,
        layers=layers,
        hidden_size=view.size("hidden_size"),
        vocab_size=view.size("vocab_size"),
        num_heads=view.size("num_attention_heads"),
        ffn=max([*widths, experts.width, experts.shared_width]),
        max_position=view.size("max_position_embeddings", 2**31 - 1),
        parameters=parameters,
        weight_bytes=round(parameters.total * bits / 8),
        exact_weights=exact and model_type(view) in EXACT,
        num_experts=experts.num,
        top_k=experts.top_k,
    )


def from_gguf(path: Path) -> PlanModel:
    """Layers from the metadata of a GGUF file (of the first of a split model), weights from its tensor descriptions."""
    header = gguf.read_header(path)
    config = gguf.as_config(header)
    if not config["model_type"]:
        raise ModelError(f"{path}: 'general.architecture' is missing from its metadata")
    model = from_config(ConfigView(config, str(path)), str(path), None, "auto")
    if not header.tensors:
        return model
    total = sum(tensor.num_elements for tensor in header.tensors)
    experts = sum(tensor.num_elements for tensor in header.tensors if "_exps." in tensor.name)
    lookup = {tensor.name: tensor.num_elements for tensor in header.tensors}
    table = lookup.get("token_embd.weight", 0) if "output.weight" in lookup else 0
    return replace(
        model,
        parameters=Parameters(total, total - experts - table, experts),
        weight_bytes=sum(tensor.nbytes for tensor in header.tensors),
        exact_weights=True,
    )


def _weight_bits(view: ConfigView, dtype: str) -> tuple[float, bool]:
    """(bits per parameter, exact): of the dtype, or about what the quantisation says."""
    plain = DTYPE_BYTES[dtype] * 8.0
    if not view.has("quantization_config"):
        return plain, True
    settings = view.section("quantization_config")
    method = str(settings.get("quant_method", "unknown"))
    if method == "bitsandbytes":
        bits = 4.5 if settings.flag("load_in_4bit", False) else 8.0
    elif method in ("fp8", "fbgemm_fp8"):
        bits = 8.0
    elif method == "mxfp4":
        bits = 4.25
    elif method in ("gptq", "awq"):
        group = settings.size("group_size", 128, least=-1)
        bits = settings.size("bits", 4) + (32 / group if group > 0 else 0.0)
    else:
        raise settings.error(
            f"'quant_method' {method!r} is not planned; planned: awq, bitsandbytes, fbgemm_fp8, fp8, gptq, mxfp4"
        )
    return bits, False
