"""Low-rank adapters (LoRA, arXiv 2106.09685) in the folders that PEFT writes: W x becomes W x + scale * B (A x).

adapter_config.json              scale = alpha / r, or alpha / sqrt(r) (rsLoRA); patterns may say other r and alpha
adapter_model.safetensors        base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight [r, inputs]
                                 base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight [outputs, r]

All that changes a model in another way is refused by name: an adapter that is half applied answers nonsense.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvtrove.models.config_view import read_json
from kvtrove.models.decoder import DecoderLayer, Model
from kvtrove.models.families import find_family
from kvtrove.models.layers.adapted import LowRank, Selection, adapted_layer, modules_of
from kvtrove.models.layers.linear import Part
from kvtrove.models.products import Products
from kvtrove.models.spec import ModelError, ModelSpec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_REFUSED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("peft_type", lambda value: value != "LORA", "only LORA adapters are served"),
    ("use_dora", bool, "DoRA changes the length of weights, which a low-rank sum cannot"),
    ("bias", lambda value: value not in (None, "none"), "adapters with biases are not served"),
    ("lora_bias", bool, "adapters with biases are not served"),
    ("modules_to_save", bool, "whole modules cannot be exchanged for a request"),
    ("fan_in_fan_out", bool, "matrices of Conv1D layers are not served"),
    ("trainable_token_indices", bool, "embeddings cannot be exchanged for a request"),
)


@dataclass(frozen=True, eq=False)
class Adapter:
    """digest: 32 bytes over its files, the root of its cache keys. modules: by the decoder's names, such as
    layers.0.self_attn.q_proj. rank: the largest.
    """

    digest: bytes
    modules: Mapping[str, LowRank]
    rank: int


def adapter_bytes(path: Path) -> int:
    """Of an adapter's weights, before it is loaded. ModelError when there are none."""
    _refuse_missing(path)
    return (path / WEIGHTS).stat().st_size


def adapter_digest(path: Path) -> bytes:
    """Over both files. ModelError when one is missing."""
    _refuse_missing(path)
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        digest.update(hashlib.sha256((path / name).read_bytes()).digest())
    return digest.digest()


def load_adapter(path: Path, spec: ModelSpec, products: Products) -> Adapter:
    """An adapter of a model. ModelError names the file, and the setting or tensor, for all that cannot be served."""
    digest = adapter_digest(path)
    config = _config(path / CONFIG)
    tensors = _tensors(path / WEIGHTS)
    prefixes = find_family(spec.architecture).prefixes
    pairs = {_without_prefix(module, prefixes): pair for module, pair in tensors.items()}
    modules: dict[str, LowRank] = {}
    used: set[str] = set()
    for module, shape in modules_of(spec):
        source = find_family(spec.architecture).locate(f"{module}.weight", spec)
        stored = source.name.removesuffix(".weight")
        if stored not in pairs:
            continue
        used.add(stored)
        down, up = pairs[stored]
        up = up[source.start : source.stop]
        if (up.shape[0], down.shape[1]) != shape or down.shape[0] != up.shape[1]:
            raise ModelError(
                f"{path / WEIGHTS}: {stored} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, which do "
                f"not fit the model's [{shape[0]}, {shape[1]}]: is it an adapter of this model?"
            )
        modules[module] = LowRank(
            products.build_adapter(_part(down), down.shape[1]),
            products.build_adapter(_part(up), up.shape[1]),
            _scale(config, stored, down.shape[0]),
        )
    if unknown := sorted(pairs.keys() - used):
        raise ModelError(
            f"{path / WEIGHTS}: adapts {unknown[0]}"
            + (f" and {len(unknown) - 1} more modules" if len(unknown) > 1 else "")
            + f", which cannot be adapted in {spec.architecture}; projections of attention and of dense MLPs can"
        )
    return Adapter(digest, modules, max(pair[0].shape[0] for pair in pairs.values()))


def with_adapters(model: Model, adapters: Sequence[Adapter], selection: Selection) -> Model:
    """The same model, whose layers add what the adapters say for the rows of `selection`."""
    layers: list[DecoderLayer] = []
    for index, layer in enumerate(model.layers):
        parts = {one.digest: one.modules for one in adapters}
        layers.append(adapted_layer(layer, f"layers.{index}", model.spec, parts, selection))
    return model.with_layers(tuple(layers))


def _refuse_missing(path: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            pickled = (path / "adapter_model.bin").is_file() and name == WEIGHTS
            hint = "; its weights are pickled, and loading those can run any code: save it with safetensors" * pickled
            raise ModelError(f"{path}: no {name}; an adapter is a folder as PEFT saves it{hint}")


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    for name, wrong, why in _REFUSED:
        if wrong(config.get(name)):
            raise ModelError(f"{path}: {name!r} is {config.get(name)!r:.80}: {why}")
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float) or not 0 < config[name] < math.inf:
            raise ModelError(f"{path}: {name!r} is {config.get(name)!r:.80}, expected a number above zero")
    return config


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = _matched(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _matched(patterns: Mapping[str, Any] | None, module: str, default: float) -> Any:
    """The value of the first pattern that ends the module's name, as PEFT finds it."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def _tensors(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Module as the file names it -> A [r, inputs] and B [outputs, r]."""
    sides: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (it is no dict)
                found = _TENSOR.fullmatch(key)
                if found is None:
                    raise ModelError(f"{path}: tensor {key!r} is no lora_A or lora_B of a linear layer")
                tensor = file.get_tensor(key)
                if tensor.ndim != 2 or not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                    raise ModelError(f"{path}: tensor {key!r} is no matrix of finite numbers")
                sides.setdefault(found["module"], {})[found["side"]] = tensor
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a complete safetensors file ({error})") from error
    for module, both in sides.items():
        if both.keys() != {"A", "B"}:
            raise ModelError(f"{path}: {module} has lora_{next(iter(both))} alone")
    if not sides:
        raise ModelError(f"{path}: holds no tensor")
    return {module: (both["A"], both["B"]) for module, both in sides.items()}


def _without_prefix(module: str, prefixes: Sequence[str]) -> str:
    return next((module.removeprefix(one) for one in prefixes if module.startswith(one)), module)


def _part(tensor: Tensor) -> Part:
    return Part(tensor.shape[0], lambda: tensor.contiguous())
