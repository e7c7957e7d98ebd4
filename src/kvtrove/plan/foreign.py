"""Models that the engine does not run: planned from their config or GGUF header alone."""

from __future__ import annotations

from dataclasses import replace

from kvtrove.kv.plane import DTYPE_BYTES
from kvtrove.models.config_view import ConfigView
from kvtrove.models.families import REGISTRY, find_family
from kvtrove.models.gguf.config import as_config
from kvtrove.models.gguf.header import GGUFHeader
from kvtrove.models.precision import Precision
from kvtrove.plan.config_names import PLAIN, canonical
from kvtrove.plan.estimate import EXACT, dense_widths, estimate_parameters, model_type, read_experts
from kvtrove.plan.geometry import READERS, read_layers
from kvtrove.plan.model import PlanModel, from_spec
from kvtrove.plan.parameters import Parameters
from kvtrove.plan.quantized import KEYS, bits_per_parameter, quantization_of


def from_config(values: ConfigView, name: str, architecture: str | None, dtype: str) -> PlanModel:
    """values: a config.json, or what a GGUF header says in its words. dtype: "auto" takes the checkpoint's own."""
    settings = quantization_of(values.values)
    bits = None if settings is None else bits_per_parameter(ConfigView(settings, f"{values.where}: quantization"))
    if architecture in REGISTRY and bits is not None:
        return _known(values, name, architecture, dtype, bits)
    view = canonical(values)
    layers, experts = read_layers(view), read_experts(view)
    parameters = estimate_parameters(view, layers, experts)
    stored = str(view.get("dtype", view.get("torch_dtype", "bfloat16"))).removeprefix("torch.")
    dtype = (stored if stored in ("float32", "float16") else "bfloat16") if dtype == "auto" else dtype
    kind = model_type(view)
    widths = [width for width, sparse in zip(dense_widths(view, layers), experts.sparse, strict=True) if not sparse]
    return PlanModel(
        name=name,
        architecture=architecture or kind or "unknown",
        dtype=dtype,
        layers=layers,
        hidden_size=view.size("hidden_size"),
        vocab_size=view.size("vocab_size"),
        num_heads=view.size("num_attention_heads"),
        ffn=max([*widths, experts.width, experts.shared_width]),
        max_position=view.size("max_position_embeddings", 2**31 - 1),
        parameters=parameters,
        weight_bytes=round(parameters.total * (bits or DTYPE_BYTES[dtype] * 8.0) / 8),
        exact_weights=bits is None and kind in EXACT,
        assumed="" if kind in PLAIN | READERS.keys() else f"model type {kind!r} is not known: read as plain attention",
        num_experts=experts.num,
        top_k=experts.top_k,
    )


def _known(values: ConfigView, name: str, architecture: str, dtype: str, bits: float) -> PlanModel:
    """A model whose architecture the engine runs, but not with these weights: its cache is known exactly."""
    plain = {key: value for key, value in values.values.items() if key not in KEYS}
    if isinstance(text := plain.get("text_config"), dict):
        plain["text_config"] = {key: value for key, value in text.items() if key not in KEYS}
    spec = find_family(architecture).spec(ConfigView({**plain, "architecture": architecture}, values.where))
    dtype = spec.dtype if dtype == "auto" else dtype
    model = from_spec(spec, name, Precision.plain(dtype))
    nbytes = round(model.parameters.total * bits / 8)
    return replace(model, weight_bytes=nbytes, exact_weights=False, spec=None, precision=None)


def from_gguf(header: GGUFHeader) -> PlanModel:
    """Layers from the metadata of a GGUF file, weights from its tensor descriptions."""
    name = str(header.path)
    model = from_config(ConfigView(as_config(header), name), name, None, "auto")
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
