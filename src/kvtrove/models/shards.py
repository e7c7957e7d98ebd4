"""Which safetensors files of a checkpoint directory hold its weights. No torch.

single   model.safetensors; it wins over an index that an earlier download left behind, as in Hugging Face transformers
index    model.safetensors.index.json and the shards that it names
shards   model-00001-of-00003.safetensors and so on, complete, without an index
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtrove.models.config_view import ConfigView, read_json
from kvtrove.models.spec import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Shards:
    """listing: the file or directory that says which tensors there are. files: in order.

    weight_map: name of a tensor -> its file, as the index says; None when each file has to be asked.
    """

    listing: Path
    files: tuple[Path, ...]
    weight_map: Mapping[str, Path] | None = None


def find_shards(directory: Path) -> Shards | None:
    """None without any safetensors. ModelError when a shard is missing, no plain file, or outside the directory."""
    single, index = directory / SINGLE, directory / INDEX
    if single.exists():
        return Shards(single, _plain_files([single]))
    if index.exists():
        return _indexed(directory, index)
    return _counted(directory)


def _indexed(directory: Path, index: Path) -> Shards:
    names = ConfigView(read_json(index), str(index)).section("weight_map").values
    for name, file in names.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise ModelError(f"{index}: tensor {name!r} lies in {file!r}, which is not the name of a file beside it")
    files = {file: directory / file for file in sorted(set(names.values()))}
    for path in files.values():
        if not path.exists():
            raise ModelError(f"{path}: the shard is missing, though {INDEX} names it; download the checkpoint again")
    return Shards(index, _plain_files(files.values()), {name: files[file] for name, file in names.items()})


def _counted(directory: Path) -> Shards | None:
    found = {path.name: path for path in directory.glob("model-*.safetensors") if _SHARD.fullmatch(path.name)}
    if not found:
        return None
    count = max(int(_SHARD.sub(r"\2", name)) for name in found)
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    missing = [name for name in names if name not in found]
    if missing:
        raise ModelError(
            f"{directory / missing[0]}: the shard is missing, and {INDEX} as well; download the checkpoint again"
        )
    return Shards(directory, _plain_files(found[name] for name in names))


def _plain_files(paths: Iterable[Path]) -> tuple[Path, ...]:
    files = tuple(paths)
    for path in files:
        if not path.is_file():  # opening a pipe would wait forever
            raise ModelError(f"{path}: is not a plain file")
    return files


def safetensors_header(path: Path) -> dict[str, Any]:
    """| length u64 | JSON: tensor name -> dtype, shape, data_offsets | data ... |

    ModelError naming a file that has no whole header.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError(f"the header is {length} bytes long, the file {path.stat().st_size}")
            header: dict[str, Any] = json.loads(file.read(length))
    except (ValueError, OSError, struct.error) as error:
        raise ModelError(f"{path}: not a complete safetensors file ({error}); download it again") from error
    return header
