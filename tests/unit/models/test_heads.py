"""Pooled heads: which numbers they are, that everything else stays, and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kvtrove.config import ConfigError
from kvtrove.models.config_reader import read_spec
from kvtrove.models.heads import convert_heads, kv_heads_of
from kvtrove.models.rewrite import Rewrite
from kvtrove.models.spec import ModelError
from tests.checkpoints import Checkpoints

K, V = "model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj"


def test_rows_of_keys_and_values_are_means_and_all_else_stays(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints.get("llama_biased", dtype="bfloat16", num_key_value_heads=4)
    made = convert_heads(source, tmp_path / "made", 2)
    old, new = (load_file(path / "model.safetensors") for path in (source, tmp_path / "made"))
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        if ".k_proj." in name or ".v_proj." in name:
            a, b, c, d = tensor.float().chunk(4)
            tensor = torch.cat([(a + b) / 2, (c + d) / 2]).bfloat16()
        assert torch.equal(new[name], tensor), name
    config = json.loads((tmp_path / "made/config.json").read_text())
    assert config == json.loads((source / "config.json").read_text()) | {"num_key_value_heads": 2}
    assert (kv_heads_of(made.before), kv_heads_of(made.after)) == (4, 2)
    assert made.bytes_after == (tmp_path / "made/model.safetensors").stat().st_size < made.bytes_before
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "made" / name).read_bytes() == (source / name).read_bytes()


def test_fused_projections_keep_their_queries(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints.get("phi3")
    convert_heads(source, tmp_path / "made", 1)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    old, new = (load_file(path / "model.safetensors")[name] for path in (source, tmp_path / "made"))
    q, k, v = old.split([64, 32, 32])
    assert torch.equal(new, torch.cat([q, *(x.unflatten(0, (2, 16)).mean(0) for x in (k, v))]))


def test_shards_and_their_index_stay(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoints.get("llama"), tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    files = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    places = {name: files[name > V] for name in tensors}
    for file in files:
        save_file({n: tensors[n] for n, at in places.items() if at == file}, source / file, {"format": "pt"})
    sizes = {"total_size": sum(t.nbytes for t in tensors.values()), "total_parameters": 10_000_000}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": sizes, "weight_map": places}))
    convert_heads(source, tmp_path / "made", 1)
    index = json.loads((tmp_path / "made/model.safetensors.index.json").read_text())
    saved = sum(t.numel() // 2 for n, t in tensors.items() if ".k_proj." in n or ".v_proj." in n)
    assert index["weight_map"] == places
    assert index["metadata"] == {
        "total_size": sizes["total_size"] - 4 * saved,
        "total_parameters": 10_000_000 - saved,
    }
    for file in files:
        with safe_open(tmp_path / "made" / file, "pt") as opened:
            assert {*opened.keys()} == {n for n, at in places.items() if at == file}
            assert opened.metadata() == {"format": "pt"}
    assert (tmp_path / "made" / files[0]).stat().st_mode == (tmp_path / "made/config.json").stat().st_mode


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "deepseek_v2": ({}, r"DeepseekV2ForCausalLM is not converted: its heads read one latent"),
    "lfm2": ({}, r"layer 0 keeps a running state"),
    "gemma4": ({}, r"layer 2 reads the keys and values of layer 0"),
    "gemma4_moe": ({}, r"the values of layer 1 are its keys"),
    "hunyuan_v1": ({"use_cla": True, "cla_share_factor": 2}, r"layer 1 reads the keys and values of layer 0"),
    "llama": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"weights are quantised \(gptq\)"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_keeps_no_heads_of_its_own_is_refused_by_name(
    family: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    changes, message = REFUSED[family]
    source = tmp_path / "source"
    source.mkdir()
    config = json.loads((checkpoints.get(family) / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=message):
        convert_heads(source, tmp_path / "made", 1)


@pytest.mark.parametrize("wanted", [0, -1, 3, 4, 8])
def test_a_number_that_does_not_fit_names_those_that_do(wanted: int, checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"kv_heads: {wanted} must divide .* 4 kv heads and be less; give 1 or 2"):
        convert_heads(checkpoints.get("llama2"), tmp_path / "made", wanted)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_ctrl_c_leave_nothing(
    failure: BaseException, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Rewrite.write

    def fails(self: Rewrite, folder: Path) -> Iterator[str]:
        names = write(self, folder)
        yield next(names)
        raise failure

    monkeypatch.setattr(Rewrite, "write", fails)
    expected = ConfigError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match=r"\(No space left on device\); nothing of it is left|^$"):
        convert_heads(checkpoints.get("llama"), tmp_path / "made", 1)
    assert not [*tmp_path.iterdir()]


def test_a_damaged_file_is_named_before_anything_is_written(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoints.get("llama"), tmp_path / "source"))
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a complete safetensors file"):
        convert_heads(source, tmp_path / "made", 1)
    assert [*tmp_path.iterdir()] == [source]


def test_the_result_is_read_as_any_checkpoint(checkpoints: Checkpoints, tmp_path: Path) -> None:
    convert_heads(checkpoints.get("llama2"), tmp_path / "grouped", 2)
    convert_heads(tmp_path / "grouped", tmp_path / "one", 1)
    assert kv_heads_of(read_spec(tmp_path / "one")) == 1
    with pytest.raises(ConfigError, match="has 1 kv head already, so there is nothing to pool"):
        convert_heads(tmp_path / "one", tmp_path / "none", 1)
