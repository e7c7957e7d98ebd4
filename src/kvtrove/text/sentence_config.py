"""How the makers of a checkpoint turn texts into vectors, or judge pairs of texts: the files of sentence-transformers
beside it (modules.json and a folder per module), or the metadata of a GGUF file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvtrove.models.gguf.header import gguf_file, read_header
from kvtrove.models.spec import ModelError
from kvtrove.text.files import read_json, read_objects

_GGUF_POOLINGS = {1: "mean", 2: "cls", 3: "last"}
_POOLINGS = {
    **{"lasttoken": "last", "mean": "mean", "cls": "cls"},
    **{"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"},
}


@dataclass(frozen=True)
class SentenceConfig:
    """pooling: None where nothing is said. judge: ids of the tokens that say yes and no, of a model made to judge."""

    pooling: str | None = None
    judge: tuple[int, int] | None = None


def read_sentence_config(directory: str | Path) -> SentenceConfig:
    """ModelError names a file whose pooling is none of ours."""
    directory = Path(directory)
    if (file := gguf_file(directory)) is not None:
        header = read_header(file)
        return SentenceConfig(_GGUF_POOLINGS.get(header.metadata.get(f"{header.architecture}.pooling_type", 0)))
    pooling, judge = None, None
    for module in read_objects(directory / "modules.json"):
        kind, path = str(module.get("type", "")).rpartition(".")[2], directory / str(module.get("path", ""))
        if kind == "Pooling":
            pooling = _pooling(path / "config.json")
        if kind == "LogitScore":
            judge = _judge(path / "config.json")
    return SentenceConfig(pooling, judge)


def _pooling(path: Path) -> str:
    modes = [*_modes(path)]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ModelError(
            f"{path}: pooling by {' and '.join(modes) or 'nothing'} is not supported; --pooling last, mean or cls is"
        )
    return _POOLINGS[modes[0]]


def _modes(path: Path) -> Iterator[str]:
    """Names under `pooling_mode`, or as older files have it, flags that are true."""
    config = read_json(path)
    said = config.get("pooling_mode")
    if said is not None:
        yield from map(str, said if isinstance(said, list) else [said])
    else:
        yield from (name for name, on in config.items() if name.startswith("pooling_mode") and on is True)


def _judge(path: Path) -> tuple[int, int]:
    config = read_json(path)
    yes, no = config.get("true_token_id"), config.get("false_token_id")
    if not isinstance(yes, int) or not isinstance(no, int):
        raise ModelError(f"{path}: true_token_id and false_token_id are {yes!r} and {no!r}, expected token ids")
    return yes, no
