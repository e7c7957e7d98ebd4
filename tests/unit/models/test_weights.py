"""Loading: zero-copy, sharded, converted, and in words what is wrong with a checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvtrove.models.config_reader import read_spec
from kvtrove.models.decoder import Model
from kvtrove.models.layers.linear import Linear
from kvtrove.models.layers.mlp import MLP
from kvtrove.models.loader import load_model
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from kvtrove.models.spec import ModelError
from tests.checkpoints import Checkpoints

Tensors = dict[str, Tensor]


@pytest.fixture
def llama(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A copy of a small Llama that a test may damage."""
    return Path(shutil.copytree(checkpoints.get("llama"), tmp_path / "llama"))


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Model:
    precision = Precision.plain(str(dtype).removeprefix("torch."))
    return load_model(directory, read_spec(directory), Products(precision, wanted="torch"))


def change(directory: Path, edit: dict[str, Tensor | None]) -> None:
    """Replaces tensors, or drops those that are None."""
    tensors = load_file(directory / "model.safetensors") | edit
    (directory / "model.safetensors").unlink()  # the loaded ones may be views of it
    save_file({k: v.clone() for k, v in tensors.items() if v is not None}, directory / "model.safetensors")


def shard(directory: Path) -> dict[str, str]:
    """Splits the weights in two files and an index; returns its weight map."""
    tensors = load_file(directory / "model.safetensors")
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({k: v.clone() for k, v in tensors.items() if weight_map[k] == file}, directory / file)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def parameters(part: object) -> Iterator[Tensor]:
    """Every tensor below a weight container."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple):
        for item in part:
            yield from parameters(item)
    else:
        for item in getattr(part, "__dict__", {}).values():
            yield from parameters(item)


def mapped(path: Path) -> list[tuple[int, int]]:
    """Address ranges of this process that are mappings of the file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    spans = [line[0].split("-") for line in lines]
    return [(int(start, 16), int(stop, 16)) for start, stop in spans]


@pytest.mark.parametrize("family", ["llama3", "phi3", "mixtral", "qwen2"])
def test_parameters_in_the_wanted_dtype_stay_views_of_the_file(family: str, checkpoints: Checkpoints) -> None:
    directory = checkpoints.get(family)
    model = load(directory)
    spans = mapped(directory / "model.safetensors")
    tensors = [
        *parameters(model.embedding),
        *parameters(model.layers),
        *parameters(model.norm),
        *parameters(model.head),
    ]
    assert len(tensors) > 20
    for tensor in tensors:
        assert tensor.is_contiguous()
        assert any(start <= tensor.data_ptr() < stop for start, stop in spans)


def test_the_fused_projections_of_phi3_are_slices_of_one_tensor(checkpoints: Checkpoints) -> None:
    layer = load(checkpoints.get("phi3")).layers[0]
    assert isinstance(layer.mlp, MLP)
    for joint in (layer.attention.qkv, layer.mlp.gate_up):
        parts = [*parameters(tuple(joint.products))]
        assert len(parts) == len(joint.sizes)
        for part, following in pairwise(parts):
            assert following.data_ptr() - part.data_ptr() == part.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_converted(llama: Path, dtype: torch.dtype) -> None:
    stored = load_file(llama / "model.safetensors")
    model = load(llama, dtype)
    assert {tensor.dtype for tensor in parameters(model.layers)} == {dtype}
    o = model.layers[1].attention.o
    assert isinstance(o, Linear)
    assert torch.equal(o.weight, stored["model.layers.1.self_attn.o_proj.weight"].to(dtype))


def test_gemma_norm_weights_are_widened(checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("gemma3", dtype="bfloat16")
    stored = load_file(directory / "model.safetensors")["model.layers.0.self_attn.q_norm.weight"]
    norm = load(directory, torch.bfloat16).layers[0].attention.q_norm
    assert norm is not None
    assert torch.equal(norm.weight, 1 + stored.float()), "1 + w in bfloat16 would lose most of w"


def test_shards_load_the_same(checkpoints: Checkpoints, llama: Path) -> None:
    whole = load(checkpoints.get("llama"))
    shard(llama)
    for a, b in zip(parameters(whole.layers), parameters(load(llama).layers), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("leftover", [False, True], ids=["no index", "an index of another download"])
def test_one_file_needs_no_index(checkpoints: Checkpoints, llama: Path, leftover: bool) -> None:
    whole = load(checkpoints.get("llama"))
    if leftover:
        text = json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}})
        (llama / "model.safetensors.index.json").write_text(text)
    else:
        (llama / "model.safetensors").rename(llama / "model-00001-of-00001.safetensors")
    for a, b in zip(parameters(whole.layers), parameters(load(llama).layers), strict=True):
        assert torch.equal(a, b)


def test_numbered_shards_load_without_an_index(checkpoints: Checkpoints, llama: Path) -> None:
    whole = load(checkpoints.get("llama"))
    shard(llama)
    (llama / "model.safetensors.index.json").unlink()
    for a, b in zip(parameters(whole.layers), parameters(load(llama).layers), strict=True):
        assert torch.equal(a, b)
    (llama / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: the shard is missing"):
        load(llama)


@pytest.mark.parametrize("file", ["../model-00001-of-00002.safetensors", "/etc/passwd", "..", 7])
def test_an_index_stays_in_its_directory(llama: Path, file: Any) -> None:
    weight_map = shard(llama)
    text = json.dumps({"weight_map": weight_map | {"model.norm.weight": file}})
    (llama / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"'model.norm.weight' lies in .*, which is not the name of a file"):
        load(llama)


def test_a_pipe_is_no_shard(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    os.mkfifo(llama / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: is not a plain file"):
        load(llama)


def test_progress_counts_layers(llama: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    load_model(llama, read_spec(llama), Products(Precision.plain("float32")), lambda *args: seen.append(args))
    assert seen == [("loading weights", i, 3) for i in (1, 2, 3)]


def test_a_missing_tensor_is_named_with_its_shape(llama: Path) -> None:
    change(llama, {"model.layers.2.mlp.up_proj.weight": None})
    with pytest.raises(
        ModelError,
        match=r"model\.safetensors: tensor 'model.layers.2.mlp.up_proj.weight' is missing, expected shape \[96, 64\]",
    ):
        load(llama)


def test_a_wrong_shape_names_both(llama: Path) -> None:
    change(llama, {"model.layers.1.self_attn.k_proj.weight": torch.zeros(16, 64)})
    shapes = r"'model.layers.1.self_attn.k_proj.weight' has shape \[16, 64\], but config.json asks for \[32, 64\]"
    with pytest.raises(ModelError, match=rf"model\.safetensors: tensor {shapes}"):
        load(llama)


def test_a_wrong_fused_shape_names_the_whole_tensor(checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(checkpoints.get("phi3"), tmp_path / "phi3"))
    change(directory, {"model.layers.0.self_attn.qkv_proj.weight": torch.zeros(64, 64)})
    with pytest.raises(
        ModelError, match=r"qkv_proj.weight' has shape \[64, 64\], but config.json asks for \[128, 64\]"
    ):
        load(directory)


def test_an_unreadable_dtype_is_named(llama: Path) -> None:
    change(llama, {"model.norm.weight": torch.ones(64, dtype=torch.int8)})
    with pytest.raises(ModelError, match=r"tensor 'model.norm.weight' is stored as I8; supported: F32, F16, BF16"):
        load(llama)


@pytest.mark.parametrize("kept", [4, 500, -100])
def test_a_truncated_file_is_named(llama: Path, kept: int) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a complete safetensors file .*; download it again"):
        load(llama)


def test_a_truncated_shard_is_named(llama: Path) -> None:
    file = llama / sorted(set(shard(llama).values()))[1]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: not a complete safetensors file"):
        load(llama)


def test_a_missing_shard_is_named_with_the_index(llama: Path) -> None:
    shard(llama)
    (llama / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ModelError,
        match=r"model-00002-of-00002\.safetensors: the shard is missing, though model.safetensors.index.json names it",
    ):
        load(llama)


def test_a_shard_without_the_tensor_that_the_index_places_there(llama: Path) -> None:
    weight_map = shard(llama)
    moved = dict.fromkeys(weight_map, weight_map["model.norm.weight"])
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(ModelError, match=r"is missing, though model.safetensors.index.json places it there"):
        load(llama)


def test_an_index_with_a_gap_names_the_index(llama: Path) -> None:
    weight_map = shard(llama)
    del weight_map["model.layers.0.input_layernorm.weight"]
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"index\.json: tensor 'model.layers.0.input_layernorm.weight' is missing"):
        load(llama)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(llama: Path, text: str) -> None:
    shard(llama)
    (llama / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json: "):
        load(llama)


def test_pickled_weights_are_refused_with_the_reason(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"pytorch_model\.bin.*Only safetensors are read, because loading a pickle can run"
    ):
        load(llama)
    (llama / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no weights found; expected model\.safetensors or "):
        load(llama)


def test_an_untied_model_without_output_matrix(llama: Path) -> None:
    change(llama, {"lm_head.weight": None})
    with pytest.raises(ModelError, match=r"tensor 'lm_head.weight' is missing.*'tie_word_embeddings': true"):
        load(llama)


def test_tied_in_config_but_stored_apart(
    checkpoints: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Path(shutil.copytree(checkpoints.get("llama", tie_word_embeddings=True), tmp_path / "tied"))
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    change(directory, {"lm_head.weight": embedding})
    model = load(directory)
    assert model.head.weight is model.embedding.weight, "equal copies are one matrix"
    assert not caplog.records
    change(directory, {"lm_head.weight": 2 * embedding})
    assert torch.equal(load(directory).head.weight, 2 * embedding)
    assert "differs from the embeddings" in caplog.text


def test_tensors_that_the_model_does_not_use(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="kvtrove")
    change(llama, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    load(llama)
    assert not caplog.records, "buffers of older checkpoints are no news"
    change(llama, {"model.layers.0.extra.weight": torch.ones(2)})
    load(llama)
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "1 tensors of the checkpoint are not part of the model: model.layers.0.extra.weight" in record.message
