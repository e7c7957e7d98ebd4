"""Fewer heads of keys and values: K and V projections of a checkpoint, pooled (GQA, arXiv 2305.13245, section 2.1).

    query heads   0  1  2  3  4  5  6  7        keep their order and weights
    kv heads      0     1     2     3           rows of k_proj and v_proj, and of their biases
                  mean        mean
    pooled        0           1                 what the queries of both groups read now

A norm over all keys of a token (Olmo 2) is pooled with them; norms of single heads stay. The mean is taken in float32
and rounded once to what the checkpoint stores.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kvtrove.config import ConfigError
from kvtrove.models.config_reader import read_spec
from kvtrove.models.config_view import ConfigView, read_json
from kvtrove.models.families import find_family
from kvtrove.models.families.common import Family, Source, quantisation
from kvtrove.models.gguf.header import gguf_file
from kvtrove.models.loader import Progress
from kvtrove.models.rewrite import Change, Rewrite
from kvtrove.models.safetensors_files import SafetensorsCheckpoint
from kvtrove.models.shards import INDEX
from kvtrove.models.spec import ModelError, ModelSpec

CONFIG, KV_HEADS = "config.json", "num_key_value_heads"
BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "LICEN[CS]E*", "NOTICE*")
"""Files that go with the weights: tokenizer, chat template, how tokens are drawn, licence."""


@dataclass(frozen=True)
class Conversion:
    """before, after: what both checkpoints say. *_bytes: of their weight files."""

    before: ModelSpec
    after: ModelSpec
    bytes_before: int
    bytes_after: int


def kv_heads_of(spec: ModelSpec) -> int:
    """Heads of keys and values of a layer, in a model that `convert_heads` takes."""
    return spec.layers[0].kv.heads


def convert_heads(source: Path, target: Path, kv_heads: int, progress: Progress | None = None) -> Conversion:
    """Write the checkpoint directory `source` to the new folder `target` with `kv_heads` heads of keys and values.

    The folder appears whole or not at all. ModelError for a checkpoint that is damaged or keeps something else than
    keys and values in each layer, ConfigError for a number of heads that does not fit, a folder that exists, a full
    disk. progress("converting", tensors written, in total).
    """
    spec = _convertible(source)
    _check_heads(kv_heads, kv_heads_of(spec))
    if os.path.lexists(target):
        raise ConfigError(f"{target}: exists already and is not overwritten; name a folder that is not there yet")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: {target.absolute().parent} is no folder; make it first")
    checkpoint = SafetensorsCheckpoint(source)
    rewrite = Rewrite(checkpoint, _changes(checkpoint, spec, kv_heads))
    try:
        after = _write(source, target, spec, kv_heads, rewrite, progress)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror or error}); nothing of it is left") from error
    return Conversion(spec, after, sum(file.stat().st_size for file in checkpoint.files), rewrite.nbytes)


def _convertible(source: Path) -> ModelSpec:
    """The model, where each of its layers keeps as many heads of K and V as the others, in floats. ModelError else."""
    if gguf_file(source) is not None:
        raise ModelError(f"{source}: is GGUF; only safetensors are converted, give the checkpoint that it was made of")
    spec = read_spec(source)
    view = ConfigView(read_json(source / CONFIG), str(source / CONFIG))
    family, method = find_family(spec.architecture), quantisation(view)
    if method is not None and method not in family.quantised:
        raise ModelError(f"{source}: weights are quantised ({method}); convert the checkpoint in floats, then quantise")
    if (reason := _reason_against(spec)) is not None:
        raise ModelError(
            f"{source}: {spec.architecture} is not converted: {reason}; heads are pooled where every layer keeps "
            f"keys and values of its own"
        )
    return spec


def _reason_against(spec: ModelSpec) -> str | None:
    if spec.latent is not None:
        return "its heads read one latent, so there are no heads of keys and values"
    for index, layer in enumerate(spec.layers):
        if layer.cache is None:
            return f"layer {index} keeps a running state ({layer.state.kind if layer.state else 'none'})"
        if layer.cache.source is not None:
            return f"layer {index} reads the keys and values of layer {layer.cache.source}"
        if layer.tied:
            return f"the values of layer {index} are its keys"
        if layer.cache.heads != spec.layers[0].kv.heads:
            return f"layer {index} has {layer.cache.heads} kv heads, layer 0 has {spec.layers[0].kv.heads}"
    return None


def _check_heads(wanted: int, own: int) -> None:
    fitting = [str(n) for n in range(1, own) if own % n == 0]
    if not fitting:
        raise ConfigError(f"kv_heads: the model has {own} kv head already, so there is nothing to pool")
    if wanted < 1 or wanted >= own or own % wanted:
        raise ConfigError(
            f"kv_heads: {wanted} must divide the model's {own} kv heads and be less; give {' or '.join(fitting)}"
        )


def _changes(checkpoint: SafetensorsCheckpoint, spec: ModelSpec, kv_heads: int) -> dict[str, Change]:
    """By name of a stored tensor. Where projections are fused, keys and values are rows of one."""
    family, rows = find_family(spec.architecture), dict[str, list[tuple[int, int]]]()
    prefix, shapes = family.prefix(checkpoint.names), dict[str, tuple[int, ...]]()
    for name, shape in _pooled_parameters(checkpoint, spec, family, prefix):
        source = _plain(family.locate(name, spec), spec)
        stored = prefix + source.name
        shapes[stored] = source.whole_shape(shape)
        start = source.start
        rows.setdefault(stored, []).append((start, start + shape[0] if source.stop is None else source.stop))
    group = kv_heads_of(spec) // kv_heads

    def change(name: str) -> Change:
        shape, ranges = shapes[name], sorted(rows[name])
        saved = sum(stop - start for start, stop in ranges) // group * (group - 1)

        def make() -> Tensor:
            return pooled(checkpoint.read(name, shape), ranges, kv_heads, group)

        checkpoint.read(name, shape)  # a view of the file: names now what is missing or misshapen
        return Change((shape[0] - saved, *shape[1:]), make)

    return {name: change(name) for name in rows}


def _pooled_parameters(
    checkpoint: SafetensorsCheckpoint, spec: ModelSpec, family: Family, prefix: str
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(the decoder's name, shape) of every parameter with a row for each element of all keys or values of a token."""
    for index, layer in enumerate(spec.layers):
        name, size = f"layers.{index}.self_attn", layer.kv.heads * layer.kv.k_dim
        for part in ("k_proj", "v_proj"):
            yield f"{name}.{part}.weight", (size, spec.hidden_size)
            bias = f"{name}.{part}.bias"
            if spec.attention_bias or prefix + family.locate(bias, spec).name in checkpoint:
                yield bias, (size,)
        if spec.qk_norm == "projection":
            yield f"{name}.k_norm.weight", (size,)


def _plain(source: Source, spec: ModelSpec) -> Source:
    """`source`, which says that rows lie behind each other in a tensor. ModelError for anything else."""
    if source.step != 1 or source.every is not None or source.stack is not None or source.transposed:
        raise ModelError(f"{spec.architecture} is not converted: {source.name} holds keys and values in another order")
    return source


def pooled(stored: Tensor, ranges: list[tuple[int, int]], kv_heads: int, group: int) -> Tensor:
    """`stored` [rows, ...] with the mean of every `group` heads in each range of rows, which holds kv_heads * group.

    The other rows stay. Same dtype.
    """
    parts, at = [], 0
    for start, stop in ranges:
        heads = stored[start:stop].unflatten(0, (kv_heads, group, -1))
        parts += [stored[at:start], heads.to(torch.float32).mean(1).flatten(0, 1).to(stored.dtype)]
        at = stop
    return torch.cat([*parts, stored[at:]])


def _write(
    source: Path, target: Path, spec: ModelSpec, kv_heads: int, rewrite: Rewrite, progress: Progress | None
) -> ModelSpec:
    """The new folder, made beside its place and moved there when it is complete."""
    free = shutil.disk_usage(target.absolute().parent).free
    if free < rewrite.nbytes:
        raise ConfigError(f"{target}: needs {rewrite.nbytes:,} bytes, and the disk has {free:,} free")
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".convert-") as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        for file in {file for pattern in BESIDE for file in source.glob(pattern)}:
            if file.is_file() and file.name not in (CONFIG, INDEX):
                shutil.copyfile(file, made / file.name)
        _write_config(source, made, kv_heads)
        after = read_spec(made)
        layers = tuple(replace(one, cache=replace(one.kv, heads=kv_heads)) for one in spec.layers)
        if after != replace(spec, layers=layers):
            raise ModelError(f"{source / CONFIG}: says the number of kv heads under other keys than {KV_HEADS!r}")
        for done, _ in enumerate(rewrite.write(made), 1):
            if progress:
                progress("converting", done, rewrite.num_tensors)
        if os.path.lexists(target):
            raise ConfigError(f"{target}: has come into being meanwhile and is not overwritten")
        made.rename(target)
    return after


def _write_config(source: Path, made: Path, kv_heads: int) -> None:
    """The same keys with another number of heads, which stands in the language model's section where there is one."""
    values = read_json(source / CONFIG)
    section = values["text_config"] if isinstance(values.get("text_config"), dict) else values
    section[KV_HEADS] = kv_heads
    (made / CONFIG).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
