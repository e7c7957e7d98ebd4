"""How a checkpoint of integer weights is written: GPTQ, AWQ or compressed-tensors, as its config.json says. No torch.

A weight is scale * (number - zero), with a scale and a zero for `group` inputs of an output. All three pack numbers of
4 or 8 bits into words of 32 bits, each in an order of its own (`integers.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvtrove.models.config_view import ConfigView, read_json
from kvtrove.models.spec import ModelError

METHODS = ("gptq", "awq", "compressed-tensors")
PACKED = (".qweight", ".weight_packed")
"""Tensors that hold packed numbers."""
_BESIDE = ("qzeros", "scales", "g_idx", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")
BESIDE_PACKED = tuple(f".{part}" for part in _BESIDE)
SECTION = "quantization_config"


@dataclass(frozen=True)
class Integers:
    """layout: how numbers are packed; "bytes" are not. group: inputs that share a scale, 0 for all of them.

    zero_offset: added to zeros as they are stored. symmetric: all zeros are in the middle, as far as the config says.
    """

    layout: Literal["gptq", "awq", "packed", "bytes"]
    bits: int
    group: int
    zero_offset: int = 0
    symmetric: bool = True


def read_integers(values: Mapping[str, Any], where: str) -> Integers | None:
    """values: of a config.json. None for weights that are not of these methods; ModelError for a scheme not read."""
    section = values.get(SECTION)
    method = section.get("quant_method") if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or method not in METHODS:
        return None
    view = ConfigView(dict(section), f"{where}: {SECTION}")
    if method == "compressed-tensors":
        return _compressed_tensors(view)
    bits, group = view.size("bits"), view.get("group_size", 128)
    _check(view, bits, (4, 8) if method == "gptq" else (4,))
    if not isinstance(group, int) or (group < 1 and group != -1):
        raise view.error(f"'group_size' is {group!r}, expected a number of inputs, or -1 for all of them")
    if method == "awq":
        version = str(view.get("version", "gemm")).lower()
        if version != "gemm":
            raise view.error(f"AWQ version {version!r} is not read; gemm is")
        return Integers("awq", bits, max(group, 0))
    form = view.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise view.error(f"'checkpoint_format' {form!r} is not read; gptq and gptq_v2 are")
    return Integers("gptq", bits, max(group, 0), int(form == "gptq"), view.flag("sym", True))


def integers_of(path: Path) -> Integers | None:
    """Of the checkpoint at `path`; None where its weights are not of these methods, or it has no config.json."""
    file = path / "config.json"
    return read_integers(read_json(file), str(file)) if file.is_file() else None


def keeps_bits(path: Path) -> bool:
    """Whether a CPU keeps weights of the checkpoint at `path` as they are: integers, or experts in MXFP4."""
    file = path / "config.json"
    if not file.is_file():
        return False
    values = read_json(file)
    section = values.get(SECTION)
    method = section.get("quant_method") if isinstance(section, Mapping) else None
    return method == "mxfp4" or read_integers(values, str(file)) is not None


def is_read(values: Mapping[str, Any]) -> bool:
    """Whether a config.json describes integer weights that are read."""
    try:
        return read_integers(values, "config.json") is not None
    except ModelError:
        return False


def _compressed_tensors(view: ConfigView) -> Integers:
    groups = [group for group in view.section("config_groups").values.values() if isinstance(group, Mapping)]
    if not groups:
        raise view.error("'config_groups' names no group of layers")
    found = {_group(ConfigView(dict(group), view.where), view) for group in groups}
    if len(found) > 1:
        raise view.error("'config_groups' store weights in several ways; checkpoints of one are read")
    return found.pop()


def _group(group: ConfigView, view: ConfigView) -> Integers:
    weights = group.section("weights")
    form = group.get("format") or view.get("format", "pack-quantized")
    kind, strategy = weights.get("type", "int"), weights.get("strategy", "group")
    layouts: dict[Any, Literal["packed", "bytes"]] = {"pack-quantized": "packed", "int-quantized": "bytes"}
    if kind != "int" or form not in layouts:
        raise view.error(f"weights of type {kind!r} in format {form!r} are not read; int in {', '.join(layouts)} is")
    bits = weights.size("num_bits")
    _check(view, bits, (4, 8) if layouts[form] == "packed" else (8,))
    if strategy not in ("group", "channel"):
        raise view.error(f"strategy {strategy!r} is not read; group and channel are")
    group_size = weights.size("group_size") if strategy == "group" else 0
    return Integers(layouts[form], bits, group_size, symmetric=weights.flag("symmetric", True))


def _check(view: ConfigView, bits: int, known: tuple[int, ...]) -> None:
    if bits not in known:
        raise view.error(f"weights of {bits} bits are not read; those of {' and '.join(map(str, known))} are")
