"""generation_config.json: how the makers of a checkpoint want its tokens drawn when a request does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvtrove.models.gguf.header import gguf_file, read_header
from kvtrove.models.spec import ModelError
from kvtrove.request import RequestError, SamplingParams
from kvtrove.text.files import read_json
from kvtrove.text.gguf_tokenizer import sampling_defaults_of

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(directory: str | Path) -> dict[str, Any]:
    """Fields of SamplingParams, from a GGUF file those in its metadata; empty where the file is missing or silent.

    As in transformers, an explicit `do_sample: false` is greedy. ModelError when a value cannot be one.
    """
    file = gguf_file(Path(directory))
    if file is not None:
        path, found = file, sampling_defaults_of(read_header(file))
    else:
        path = Path(directory) / "generation_config.json"
        config = read_json(path)
        found = {name: value for name in _NAMES if (value := config.get(name)) is not None}
        if config.get("do_sample") is False:
            found["temperature"] = 0.0
    try:
        SamplingParams(**found)
    except (RequestError, TypeError) as error:
        raise ModelError(f"{path}: {error}") from error
    return found
