"""MODEL on the command line -> PlanModel: a checkpoint directory, a config.json under any name, or a GGUF file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from kvtrove.kv.plane import DTYPE_BYTES
from kvtrove.models.config_view import ConfigView, read_json
from kvtrove.models.families import REGISTRY, architecture_of, find_family
from kvtrove.models.gguf.architectures import ARCHITECTURES
from kvtrove.models.gguf.header import gguf_file, read_header
from kvtrove.models.gguf.spec import spec_of
from kvtrove.models.gguf.stored import GROUP_BYTES, is_quantised, kept_bytes
from kvtrove.models.integers_config import (
    BESIDE_PACKED,
    PACKED,
    Integers,
    integers_of,
    is_read,
    keeps_bits,
)
from kvtrove.models.precision import Precision
from kvtrove.models.shards import find_shards, safetensors_header
from kvtrove.models.spec import ModelError, ModelSpec
from kvtrove.plan.model import PlanModel, from_spec
from kvtrove.plan.quantized import quantization_of

log = logging.getLogger(__name__)

_MXFP4 = ("_blocks", "_scales")
_FLOATS = ("F32", "F16", "BF16")
_STORED_BYTES = {"F64": 8, "I64": 8, "I32": 4, "I16": 2}  # of what is not converted; everything else is one byte


def read_model(path: Path, dtype: str = "auto", *, weights: str = "auto", activations: str | None = None) -> PlanModel:
    """The model at `path`; weights counted in `dtype` ("auto": the checkpoint's own), matrices as `weights` says.

    activations: dtype of hidden states; None is that of the weights, or float32 beside int8 and int4.

    Safetensors or GGUF tensors beside the config decide the size of the weights; without them it is counted from the
    config. ModelError naming file and key when something is missing or not planned.
    """
    if (gguf := gguf_file(path)) is not None:
        return _from_gguf(gguf, dtype, weights, activations)
    file = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ModelError(f"{path}: there is no such file; give a checkpoint directory, a config.json or a .gguf file")
    model = _from_config(file, str(path), dtype, weights, activations, path.is_dir() and bool(_weight_files(path)))
    return _with_real_weights(model, path, _keeps(dtype, weights)) if path.is_dir() else model


def _keeps(dtype: str, weights: str) -> bool:
    """Whether a CPU keeps the bits of weights that are quantised."""
    return weights == "gguf" or weights == dtype == "auto"


def _from_config(
    file: Path, name: str, dtype: str, weights: str, activations: str | None, has_weights: bool
) -> PlanModel:
    """has_weights: files beside it will say what weights of integers take."""
    values = read_json(file)
    architecture = architecture_of(values)
    quantised, integers = quantization_of(values), has_weights and is_read(values)
    if architecture not in REGISTRY or (quantised and not integers and not _reads(architecture, quantised)):
        from kvtrove.plan.foreign import from_config

        return from_config(ConfigView(values, str(file)), name, architecture, dtype)
    spec = find_family(architecture).spec(ConfigView({**values, "architecture": architecture}, str(file)))
    kept = (integers or (has_weights and keeps_bits(file.parent))) and _keeps(dtype, weights)
    return _of_spec(spec, name, dtype, "auto" if kept else weights, activations or ("float32" if kept else None))


def _reads(architecture: str, quantised: Mapping[str, Any]) -> bool:
    return quantised.get("quant_method") in REGISTRY[architecture].quantised


def _from_gguf(file: Path, dtype: str, weights: str, activations: str | None) -> PlanModel:
    """What the engine keeps of a model that it runs; the file's own bytes of any other."""
    header = read_header(file)
    if header.architecture not in ARCHITECTURES:
        from kvtrove.plan.foreign import from_gguf

        return from_gguf(header)
    if dtype == weights == "auto" and is_quantised(header):
        weights = "gguf"  # what the engine chooses on a CPU
    model = _of_spec(spec_of(header, factors=False), str(file), dtype, weights, activations)
    return replace(model, weight_bytes=kept_bytes(header)) if weights == "gguf" else model


def _of_spec(spec: ModelSpec, name: str, dtype: str, weights: str, activations: str | None) -> PlanModel:
    dtype = spec.dtype if dtype == "auto" else dtype
    return from_spec(spec, name, Precision(dtype, activations or (dtype if weights == "auto" else "float32"), weights))


def _with_real_weights(model: PlanModel, directory: Path, kept: bool) -> PlanModel:
    """The model with the size of its weight files, floating-point tensors in the dtype they will be converted to."""
    entries = [entry for file in _weight_files(directory) for entry in _tensors(file, model)]
    if not entries:
        return model
    plain = model.parameters.nbytes(Precision.plain(model.dtype))
    saved = plain - model.parameters.nbytes(model.precision) if model.precision else 0
    nbytes: float = model.parameters.wide * (DTYPE_BYTES["float32"] - DTYPE_BYTES[model.dtype]) - saved
    integers = integers_of(directory)
    for name, stored, shape in entries:
        size: float = DTYPE_BYTES[model.dtype] if stored in _FLOATS else _STORED_BYTES.get(stored, 1)
        if model.spec and name.endswith(_MXFP4[0]) and kept:  # and a scale of 2 bytes beside the 16 of a group
            size += 2 / 16
        elif model.spec and name.endswith(_MXFP4):  # two numbers a byte, in the wider dtype where they are not kept
            size = 2 * DTYPE_BYTES[model.dtype] if name.endswith(_MXFP4[0]) else 0
        if model.spec and name.endswith(PACKED):
            size = _bytes_of_word(integers)
        elif model.spec and integers is not None and integers.layout == "bytes" and stored == "I8":
            size = _bytes_of_word(integers) / 4
        elif model.spec and name.endswith(BESIDE_PACKED):
            size = 0
        nbytes += prod(shape) * size
    return replace(model, weight_bytes=round(nbytes), exact_weights=True)


def _bytes_of_word(integers: Integers | None) -> float:
    """Of what the engine keeps of 32 bits of a file: 8 or 4 numbers, whose scales and minima are of 32 inputs."""
    if integers is None or integers.bits == 4:
        return 6.0
    return 4 * GROUP_BYTES["int8_groups" if integers.symmetric else "int8_groups_f32"] / 32


def _weight_files(directory: Path) -> Sequence[Path]:
    """None when there are no safetensors, or not all of them yet: the config is counted then."""
    try:
        shards = find_shards(directory)
    except ModelError as error:
        log.warning("%s; the size of the weights is counted from the config", error)
        return ()
    return shards.files if shards else ()


def _tensors(file: Path, model: PlanModel) -> Iterator[tuple[str, str, list[int]]]:
    """(name, stored dtype, shape) of the tensors that will be loaded: the decoder's alone where the engine runs it."""
    prefixes = find_family(model.architecture).prefixes if model.spec else ("",)
    tied = model.spec is not None and model.spec.tie_embeddings
    for name, entry in safetensors_header(file).items():
        is_head = name.endswith("lm_head.weight")
        if name != "__metadata__" and (not tied if is_head else name.startswith(prefixes)):
            yield name, entry["dtype"], entry["shape"]
