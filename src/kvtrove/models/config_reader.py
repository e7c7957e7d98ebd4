"""config.json (and generation_config.json) -> ModelSpec. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvtrove.models.config_view import ConfigView, read_json
from kvtrove.models.families import REGISTRY, architecture_of, find_family
from kvtrove.models.families.common import token_ids
from kvtrove.models.gguf.header import gguf_file
from kvtrove.models.gguf.spec import read_gguf_spec
from kvtrove.models.spec import ModelError, ModelSpec


def read_spec(directory: Path) -> ModelSpec:
    """The model that a Hugging Face checkpoint directory holds, or a GGUF file.

    End tokens come from generation_config.json, where chat checkpoints list all of them, else from config.json.
    Raises ModelError naming the file and the key when something is missing, malformed or not supported.
    """
    if (file := gguf_file(directory)) is not None:
        return read_gguf_spec(file)
    if not directory.is_dir():
        raise ModelError(
            f"{directory}: not a directory; give the folder that holds config.json and the weights, or a .gguf file"
        )
    spec = read_config(directory / "config.json")
    generation = directory / "generation_config.json"
    if generation.exists():
        ends = token_ids(ConfigView(read_json(generation), str(generation)), "eos_token_id")
        spec = replace(spec, eos_token_ids=ends or spec.eos_token_ids)
    return spec


def read_config(path: Path) -> ModelSpec:
    """The model that a config.json describes, under whatever name the file has. Raises ModelError like `read_spec`."""
    values = read_json(path)
    architecture = architecture_of(values)
    if architecture is None:
        raise ModelError(
            f"{path}: 'architectures' is missing and 'model_type' is {values.get('model_type')!r}; "
            f'add one, for example "architectures": ["LlamaForCausalLM"]; supported: {", ".join(sorted(REGISTRY))}'
        )
    try:
        family = find_family(architecture)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return family.spec(ConfigView({**values, "architecture": architecture}, str(path)))
