"""Bits per parameter of a quantised checkpoint, as its config.json says.

A quantised checkpoint keeps embeddings and norms as they are, and some keep whole layers: what is counted here makes
the plan say "about". A scheme that does not say its width is refused: a plan in bf16 would be four times too large.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kvtrove.models.config_view import ConfigView

KEYS = ("quantization_config", "quantization", "compression_config")
"""Where a config says that its weights are quantised: Hugging Face, MLX, older files of compressed-tensors."""


def quantization_of(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section of a config.json that describes quantised weights, at its top or in `text_config`."""
    text = values.get("text_config")
    for place in (values, text if isinstance(text, dict) else {}):
        found = next((place[key] for key in KEYS if place.get(key)), None)
        if isinstance(found, dict):
            return found
    return None


def bits_per_parameter(settings: ConfigView) -> float:
    """ModelError when the scheme is not known and does not say its width in `bits`."""
    method = str(settings.get("quant_method", "")).lower()
    if method in _FIXED:
        return _FIXED[method]
    if method in _READERS:
        return _READERS[method](settings)
    if not any(settings.has(key) for key in _WIDTHS):
        known = ", ".join(sorted({*_FIXED, *_READERS}))
        raise settings.error(f"'quant_method' {method!r} says no width and is not planned; planned: {known}")
    return _grouped(settings)


_WIDTHS = ("bits", "num_bits", "nbits", "w_bit")
_FIXED = {
    **{"fp8": 8.0, "fbgemm_fp8": 8.0, "finegrained_fp8": 8.0, "eetq": 8.0},
    **{"mxfp4": 4.25, "bitnet": 2.0},  # 32 numbers of 4 bits share 8 bits of scale
}


def _grouped(settings: ConfigView) -> float:
    """Integers with a scale and a zero point of 16 bits each per group of inputs."""
    width = next((key for key in _WIDTHS if settings.has(key)), "bits")
    group = settings.size("group_size", 128, least=-1)
    return settings.number(width, 4) + (32 / group if group > 0 else 0.0)


def _bitsandbytes(settings: ConfigView) -> float:
    four = settings.flag("load_in_4bit", False) or settings.flag("_load_in_4bit", False)
    return 4.5 if four else 8.0


def _compressed_tensors(settings: ConfigView) -> float:
    """The first group of layers stands for all."""
    groups = settings.section("config_groups").values
    if not groups or not isinstance(next(iter(groups.values())), dict):
        raise settings.error("'config_groups' names no group of layers")
    name, group = next(iter(groups.items()))
    weights = ConfigView(group, f"{settings.where}: config_groups: {name}").section("weights")
    size = weights.optional_size("group_size") if weights.get("group_size") != -1 else None
    scales = 16 if weights.flag("symmetric", True) else 32
    return weights.size("num_bits") + (scales / size if size else 0.0)


def _modelopt(settings: ConfigView) -> float:
    algorithm = str(settings.get("quant_algo", "")).upper()
    widths = {"FP8": 8.0, "NVFP4": 4.5, "W4A16_AWQ": 4.25, "W4A8_AWQ": 4.25, "INT8_SQ": 8.0, "MXFP8": 8.25}
    if algorithm not in widths:
        raise settings.error(f"'quant_algo' {algorithm!r} is not planned; planned: {', '.join(widths)}")
    return widths[algorithm]


def _hqq(settings: ConfigView) -> float:
    inner = settings.section("quant_config").get("weight_quant_params") if settings.has("quant_config") else None
    values = {"nbits": 4, "group_size": 64, **(inner if isinstance(inner, dict) else {})}  # the defaults of HQQ
    return _grouped(ConfigView(values, settings.where))


def _aqlm(settings: ConfigView) -> float:
    """Codes of additive codebooks, arXiv 2401.06118; by default one code of 16 bits for 8 inputs."""
    code = settings.number("nbits_per_codebook", 16) * settings.number("num_codebooks", 1)
    return code / settings.size("in_group_size", 8)


def _named(*keys: str) -> Callable[[ConfigView], float]:
    """The first number in a type's name, like int4_weight_only or fp8_e4m3, at the first of `keys` that is there."""

    def read(settings: ConfigView) -> float:
        for key in keys:
            value: Any = settings.values
            for step in key.split("."):
                value = value.get(step) if isinstance(value, dict) else None
            found = re.search(r"(?:int|float|fp|mx)(\d+)", str(value).lower()) if value is not None else None
            if found:
                bits = float(found[1])
                return bits + 0.5 if bits < 8 else bits  # about: scales of groups of 32 or 64
        raise settings.error(f"says no width; expected it in {' or '.join(map(repr, keys))}")

    return read


_READERS: Mapping[str, Callable[[ConfigView], float]] = {
    **{"gptq": _grouped, "awq": _grouped, "auto-round": _grouped, "autoround": _grouped, "intel/auto-round": _grouped},
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "hqq": _hqq,
    "aqlm": _aqlm,
    "torchao": _named("quant_type", "quant_type.default._type"),
    "quark": _named("global_quant_config.weight.dtype", "weight.dtype"),
    "quanto": _named("weights"),
}
