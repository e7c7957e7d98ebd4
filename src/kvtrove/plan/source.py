"""MODEL on the command line -> PlanModel: a checkpoint directory, a config.json under any name, or a GGUF file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from kvtrove.kv.spec import DTYPE_BYTES
from kvtrove.models.config_view import ConfigView, read_json
from kvtrove.models.families import REGISTRY, find_family
from kvtrove.models.spec import ModelError
from kvtrove.plan import gguf
from kvtrove.plan.estimate import EXACT, dense_widths, estimate_parameters, model_type, read_experts
from kvtrove.plan.geometry import canonical, read_layers
from kvtrove.plan.model import PlanModel, from_spec
from kvtrove.plan.parameters import Parameters

_FLOATS = ("F32", "F16", "BF16")
_STORED_BYTES = {"F64": 8, "I64": 8, "I32": 4, "I16": 2}  # of what is not converted; everything else is one byte


def read_model(path: Path, dtype: str = "auto") -> PlanModel:
    """The model at `path`; weights counted in `dtype` ("auto": the checkpoint's own).

    Safetensors or GGUF tensors beside the config decide the size of the weights; without them it is counted from the
    config. ModelError naming file and key when something is missing or not planned.
    """
    if path.suffix == ".gguf":
        return _from_gguf(path)
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if files:
            return _from_gguf(files[0])
    file = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ModelError(f"{path}: there is no such file; give a checkpoint directory, a config.json or a .gguf file")
    model = _from_config(file, str(path), dtype)
    return _with_real_weights(model, path) if path.is_dir() else model


def _from_config(file: Path, name: str, dtype: str) -> PlanModel:
    values = read_json(file)
    architectures = [str(a) for a in values.get("architectures") or []]
    architecture = next((a for a in architectures if a in REGISTRY), None)
    if architecture is None or "quantization_config" in values:
        view = canonical(ConfigView(values, str(file)))
        return _from_view(view, name, next(iter(architectures), model_type(view) or "unknown"), dtype)
    spec = find_family(architecture).read(ConfigView({**values, "architecture": architecture}, str(file)))
    return from_spec(spec, name, spec.dtype if dtype == "auto" else dtype)


def _from_view(view: ConfigView, name: str, architecture: str, dtype: str) -> PlanModel:
    """An architecture that only the planner knows."""
    layers, experts = read_layers(view), read_experts(view)
    parameters = estimate_parameters(view, layers, experts)
    stored = str(view.get("dtype", view.get("torch_dtype", "bfloat16"))).removeprefix("torch.")
    dtype = (stored if stored in DTYPE_BYTES else "bfloat16") if dtype == "auto" else dtype
    bits, exact = _weight_bits(view, dtype)
    return PlanModel(
        name=name,
        architecture=architecture,
        dtype=dtype,
        layers=layers,
        hidden_size=view.size("hidden_size"),
        vocab_size=view.size("vocab_size"),
        num_heads=view.size("num_attention_heads"),
        ffn=max(dense_widths(view, layers)),
        max_position=view.size("max_position_embeddings", 2**31 - 1),
        parameters=parameters,
        weight_bytes=round(parameters.total * bits / 8),
        exact_weights=exact and model_type(view) in EXACT,
        num_experts=experts.num,
        top_k=experts.top_k,
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


def _from_gguf(path: Path) -> PlanModel:
    header = gguf.read_header(path)
    config = gguf.as_config(header)
    if not config["model_type"]:
        raise ModelError(f"{path}: 'general.architecture' is missing from its metadata")
    model = _from_view(canonical(ConfigView(config, str(path))), str(path), config["model_type"], "auto")
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


def _with_real_weights(model: PlanModel, directory: Path) -> PlanModel:
    """The model with the size of its weight files, floating-point tensors in the dtype they will be converted to."""
    entries = [entry for file in _weight_files(directory) for entry in _tensors(file, model)]
    if not entries:
        return model
    nbytes = model.parameters.wide * (DTYPE_BYTES["float32"] - DTYPE_BYTES[model.dtype])
    for stored, shape in entries:
        size = DTYPE_BYTES[model.dtype] if stored in _FLOATS else _STORED_BYTES.get(stored, 1)
        nbytes += prod(shape) * size
    return replace(model, weight_bytes=nbytes, exact_weights=True)


def _weight_files(directory: Path) -> list[Path]:
    """Shards that the index names, else the single file; none when there are no safetensors yet."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = set(ConfigView(read_json(index), str(index)).section("weight_map").values.values())
        return [path for name in sorted(names) if (path := directory / str(name)).exists()]
    return [path for path in (directory / "model.safetensors",) if path.exists()]


def _tensors(file: Path, model: PlanModel) -> Iterator[tuple[str, list[int]]]:
    """(stored dtype, shape) of the tensors that will be loaded: the decoder's alone where the engine runs the model."""
    prefixes = find_family(model.architecture).prefixes if model.spec else ("",)
    tied = model.spec is not None and model.spec.tie_embeddings
    for name, entry in _safetensors_header(file).items():
        is_head = name.endswith("lm_head.weight")
        if name != "__metadata__" and (not tied if is_head else name.startswith(prefixes)):
            yield entry["dtype"], entry["shape"]


def _safetensors_header(path: Path) -> dict[str, Any]:
    """| length u64 | JSON: tensor name -> dtype, shape, data_offsets | data ... |"""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError(f"the header is {length} bytes long, the file {path.stat().st_size}")
            header: dict[str, Any] = json.loads(file.read(length))
    except (ValueError, OSError, struct.error) as error:
        raise ModelError(f"{path}: not a complete safetensors file ({error}); download it again") from error
    return header
