"""A GGUF file gives the spec and the tensors of the checkpoint that it was written from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open

from kvtrove.models.config_reader import read_spec
from kvtrove.models.gguf.checkpoint import GGUFCheckpoint
from kvtrove.models.gguf.header import read_header
from kvtrove.models.gguf.spec import spec_of
from kvtrove.models.layers.rope import RotaryEmbedding
from kvtrove.models.spec import ModelError, ModelSpec
from kvtrove.models.weights import open_checkpoint
from tests.checkpoints import Checkpoints
from tests.gguf_files import write_gguf

FAMILIES = (
    *("llama", "llama3", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3", "phi3", "phi3_long"),
    "llama_biased",
)


# What no file says: queries that are scaled by another number than the head's size, layers without experts.
OVERRIDES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"mlp_only_layers": []},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
}


def decoders(name: str) -> str:
    """Mixtral's name of a parameter as the decoder has it."""
    for theirs, ours in {
        "block_sparse_moe": "mlp",
        ".w1.": ".gate_proj.",
        ".w2.": ".down_proj.",
        ".w3.": ".up_proj.",
    }.items():
        name = name.replace(theirs, ours)
    return name


def without_rope(spec: ModelSpec) -> ModelSpec:
    layers = tuple(replace(layer, rope=replace(layer.rope, scaling=None, params=())) for layer in spec.layers)
    return replace(spec, layers=layers, norm_eps=round(spec.norm_eps, 9))


@pytest.mark.parametrize("family", FAMILIES)
def test_spec_and_tensors_are_those_of_the_checkpoint(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = checkpoints.get(family, **OVERRIDES.get(family, {}))
    path = write_gguf(directory, tmp_path / "m.gguf")
    expected, spec = read_spec(directory), read_spec(path)
    assert without_rope(spec) == without_rope(expected)
    for layer, other in zip(spec.layers, expected.layers, strict=True):
        for served in (32, spec.max_position):
            ours, theirs = (RotaryEmbedding.build(one.rope, served, "cpu") for one in (layer, other))
            assert torch.allclose(ours.inv_freq, theirs.inv_freq, rtol=1e-6)  # float32 rounds factors once
            assert ours.scale == pytest.approx(theirs.scale, rel=1e-6)
    stored = open_checkpoint(path)
    with safe_open(directory / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            got = stored.read(decoders(name), tuple(tensor.shape), torch.float32)
            assert torch.allclose(got, tensor, atol=1e-6) if "norm" in name else torch.equal(got, tensor), name


@pytest.mark.parametrize(
    ("kind", "error"), [("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 8e-3), ("Q4_0", 0.13), ("Q5_1", 0.04)]
)
def test_stored_types_come_back_as_the_library_rounds_them(
    kind: str, error: float, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """error: half a step of the type, relative to the largest element; the library's own values are met exactly."""
    path = write_gguf(checkpoints.get("llama"), tmp_path / "m.gguf", kind)
    name, shape = "model.layers.1.self_attn.q_proj.weight", (64, 64)
    got = open_checkpoint(path).read(name, shape, torch.float32).float()
    stored = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.attn_q.weight")
    values = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).astype(np.float32))
    assert torch.equal(got, values.reshape(4, -1, 2, 64).swapaxes(1, 2).reshape(shape))
    exact = open_checkpoint(checkpoints.get("llama")).read(name, shape, torch.float32)
    assert 0 < (got - exact).abs().max() / exact.abs().max() < error


def test_a_split_model_is_one_checkpoint_from_any_of_its_parts(checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = checkpoints.get("llama")
    first = write_gguf(directory, tmp_path / "m.gguf", split=10)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    for given in (first, parts[-1], tmp_path):
        assert read_spec(given).num_layers == 3
        assert open_checkpoint(given).names == open_checkpoint(first).names
    last = "model.norm.weight"
    assert torch.equal(
        open_checkpoint(tmp_path).read(last, (64,), torch.float32),
        open_checkpoint(directory).read(last, (64,), torch.float32),
    )
    parts[1].unlink()
    with pytest.raises(ModelError, match=rf"{parts[1].name}: the file is missing"):
        open_checkpoint(first)


def test_several_models_in_a_directory_are_listed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        write_gguf(checkpoints.get("llama"), tmp_path / name)
    with pytest.raises(ModelError, match=r"holds 2 GGUF models; give one: a\.gguf, b\.gguf"):
        read_spec(tmp_path)


def test_what_is_wrong_with_a_tensor_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = write_gguf(checkpoints.get("llama"), tmp_path / "m.gguf")
    checkpoint = GGUFCheckpoint(path)
    with pytest.raises(ModelError, match=r"tensor 'blk.9.attn_q.weight' \(model.layers.9.self_attn.q_proj.weight\) is"):
        checkpoint.read("model.layers.9.self_attn.q_proj.weight", (64, 64))
    with pytest.raises(
        ModelError, match=r"'blk.0.attn_q.weight' has shape \[64, 64\], but the metadata asks for \[8, 8\]"
    ):
        checkpoint.read("model.layers.0.self_attn.q_proj.weight", (8, 8))
    whole = path.read_bytes()
    path.write_bytes(whole[:-4000])
    with pytest.raises(
        ModelError, match=r"the file is cut off: tensor '.*' ends at byte \d+, the file has \d+; download"
    ):
        GGUFCheckpoint(path)


def test_layers_cannot_outnumber_the_tensors(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A wrong count would be made into that many layers, in memory, before anything else fails."""
    path = write_gguf(checkpoints.get("llama"), tmp_path / "m.gguf", **{"llama/block_count": 2**30})
    with pytest.raises(ModelError, match=r"'llama.block_count' is 1073741824, but there are at most 3 layers"):
        read_spec(path)


def test_granite_rotates_unless_the_file_says_that_it_does_not(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Its files say so in a key of another name (llama.cpp's models/granite.cpp)."""
    turns = {}
    for finetuned in (None, True, False):
        path = write_gguf(
            checkpoints.get("granite"), tmp_path / "m.gguf", **{"granite/rope/scaling/finetuned": finetuned}
        )
        turns[finetuned] = {layer.rope.rotary_dim > 0 for layer in read_spec(path).layers}
    assert turns == {None: {True}, True: {True}, False: {False}}


def test_per_layer_numbers_that_agree_are_one_and_others_are_refused_by_key(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    path = write_gguf(checkpoints.get("llama"), tmp_path / "m.gguf", **{"llama/attention/head_count_kv": [2, 2, 2]})
    assert [layer.cache.heads for layer in read_spec(path).layers] == [2, 2, 2]
    path = write_gguf(checkpoints.get("llama"), tmp_path / "n.gguf", **{"llama/feed_forward_length": [96, 96, 64]})
    with pytest.raises(ModelError, match=r"'llama.feed_forward_length' differs between layers"):
        spec_of(read_header(path))


def test_columns_in_another_order_keep_their_groups(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Value heads of Qwen 3.5 take turns in the file; those of 32 elements are whole groups, others are none."""
    name = "model.layers.0.linear_attn.out_proj.weight"
    for width in (32, 12):
        directory = checkpoints.get("qwen3_5", linear_value_head_dim=width)
        checkpoint = GGUFCheckpoint(write_gguf(directory, tmp_path / f"{width}.gguf", "Q8_0"))
        groups = checkpoint.groups(name, (64, 4 * width))
        if width == 32:
            assert groups is not None
            assert torch.equal(groups.values(), checkpoint.read(name, (64, 4 * width)))
        else:
            assert groups is None
