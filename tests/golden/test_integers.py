"""GPTQ, AWQ and compressed-tensors: every weight is the number that the format says, and so are the logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvtrove.config import EngineConfig
from kvtrove.engine import Engine
from kvtrove.kernels.linear import PackedWeights
from kvtrove.models.config_reader import read_spec
from kvtrove.models.layers.packed import PackedLinear
from kvtrove.models.spec import ModelError
from kvtrove.plan.source import read_model
from kvtrove.request import SamplingParams
from tests.golden.harness import PagedModel, expected_logits, hugging_face

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
TOKENS = [17, 40, 3, 99, 250, 8, 120, 64, 5, 77, 31]


def pack(numbers: Tensor, bits: int, dim: int) -> Tensor:
    """int32, so many numbers along `dim` in a word, the first lowest."""
    each = 32 // bits
    padding = -numbers.shape[dim] % each
    moved = torch.nn.functional.pad(numbers.movedim(dim, -1), (0, padding)).long().unflatten(-1, (-1, each))
    words = (moved << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int().movedim(-1, dim).contiguous()


def gptq(q: Tensor, scale: Tensor, zero: Tensor, bits: int, group_of: Tensor) -> dict[str, Tensor]:
    return {
        "qweight": pack(q.T, bits, 0),
        "qzeros": pack((zero - 1).T, bits, 1),
        "scales": scale.T.contiguous(),
        "g_idx": group_of.int(),
    }


def awq(q: Tensor, scale: Tensor, zero: Tensor, bits: int, group_of: Tensor) -> dict[str, Tensor]:
    def ordered(x: Tensor) -> Tensor:
        return pack(x.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), bits, 1)

    return {"qweight": ordered(q), "qzeros": ordered(zero), "scales": scale.T.contiguous()}


def packed(q: Tensor, scale: Tensor, zero: Tensor, bits: int, group_of: Tensor) -> dict[str, Tensor]:
    symmetric = bool((zero == 1 << (bits - 1)).all())
    parts = {"weight_packed": pack(q, bits, 1), "weight_scale": scale, "weight_shape": torch.tensor(q.shape)}
    return parts if symmetric else parts | {"weight_zero_point": pack(zero, bits, 0)}


def as_bytes(q: Tensor, scale: Tensor, zero: Tensor, bits: int, group_of: Tensor) -> dict[str, Tensor]:
    return {"weight": (q - 128).to(torch.int8), "weight_scale": scale}


def compressed(bits: int, group: int, form: str = "pack-quantized") -> dict[str, Any]:
    strategy: dict[str, Any] = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, **strategy}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


Write = Callable[[Tensor, Tensor, Tensor, int, Tensor], dict[str, Tensor]]
# writer, bits, group, symmetric, inputs in order, quantization_config
CASES: dict[str, tuple[Write, int, int, bool, bool, dict[str, Any]]] = {
    "gptq": (gptq, 4, 32, False, True, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "gptq-symmetric": (gptq, 4, 0, True, True, {"quant_method": "gptq", "bits": 4, "group_size": -1}),
    "gptq-act-order": (gptq, 4, 32, False, False, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "gptq-8": (gptq, 8, 32, False, True, {"quant_method": "gptq", "bits": 8, "group_size": 32}),
    "awq": (awq, 4, 32, False, True, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "w4a16": (packed, 4, 32, True, True, compressed(4, 32)),
    "w4a16-asymmetric": (packed, 4, 32, False, True, compressed(4, 32)),
    "w8a16": (packed, 8, 0, True, True, compressed(8, 0)),
    "w8a16-bytes": (as_bytes, 8, 0, True, True, compressed(8, 0, "int-quantized")),
}


def quantise(source: Path, folder: Path, case: str) -> dict[str, Tensor]:
    """Random numbers in place of every linear layer's weights; returns what they stand for by the format's formula."""
    write, bits, group, symmetric, in_order, section = CASES[case]
    shutil.copytree(source, folder, dirs_exist_ok=True)
    generator, tensors, values = torch.Generator().manual_seed(5), load_file(source / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        outputs, inputs = tensors.pop(name).shape
        groups = inputs // group if group else 1
        q = torch.randint(0, 1 << bits, (outputs, inputs), generator=generator)
        scale = ((torch.rand(outputs, groups, generator=generator) + 0.5) / (2 << bits)).half()
        zero = torch.randint(1, 1 << bits, (outputs, groups), generator=generator)
        zero = torch.full_like(zero, 1 << (bits - 1)) if symmetric else zero
        group_of = torch.arange(inputs) // (group or inputs)
        group_of = group_of if in_order else group_of[torch.randperm(inputs, generator=generator)]
        values[name] = scale.double()[:, group_of] * (q - zero.double()[:, group_of])
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{part}": tensor for part, tensor in write(q, scale, zero, bits, group_of).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return values


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_what_the_numbers_stand_for(checkpoints, tmp_path: Path, case: str) -> None:
    source = checkpoints.get("llama")
    values = quantise(source, tmp_path, case)
    model = hugging_face(source)
    assert not model.load_state_dict({n: v.float() for n, v in values.items()}, strict=False).unexpected_keys
    got = PagedModel(tmp_path).step({0: TOKENS})[0]
    assert (got - expected_logits(model, TOKENS)).abs().max() < 2e-4  # sums of float32 in another order


KINDS = {"gptq-act-order": "int8_groups", "gptq-8": "int8_groups_f32"}
KINDS |= dict.fromkeys(("gptq", "awq", "w4a16-asymmetric"), "int4_f32")
KINDS |= dict.fromkeys(("gptq-symmetric", "w4a16"), "int4_symmetric")
KINDS |= dict.fromkeys(("w8a16", "w8a16-bytes"), "int8_groups")


@pytest.mark.parametrize("case", CASES)
def test_products_hold_the_numbers_exactly(
    checkpoints, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = quantise(checkpoints.get("llama", dtype="bfloat16"), tmp_path, case)
    made: list[str] = []
    build = PackedWeights.__init__

    def spy(self: PackedWeights, outputs: int, inputs: int, kind: Any = "bf16", isa: str = "auto") -> None:
        made.append(kind)
        build(self, outputs, inputs, kind, isa)

    monkeypatch.setattr(PackedWeights, "__init__", spy)
    engine = Engine(EngineConfig(str(tmp_path), num_blocks=32, max_num_seqs=4, max_num_batched_tokens=64))
    assert set(made) == {KINDS[case], "bf16"}, "output matrix and embedding are floats in the file"
    product = engine.runner.model.layers[1].mlp.down  # type: ignore[union-attr]
    assert isinstance(product, PackedLinear)
    expected = values["model.layers.1.mlp.down_proj.weight"]
    found = product.weights.gather(torch.arange(expected.shape[0]), torch.empty(expected.shape))
    if case != "gptq-act-order":
        assert torch.equal(found.double(), expected)
    else:  # neighbours have scales of their own: rounded once more, half a step of 127 to the largest of 32
        most = expected.abs().unflatten(1, (-1, 32)).amax(2).repeat_interleave(32, 1)
        assert ((found.double() - expected).abs() <= most / 253).all()
    engine.add("a", TOKENS, SamplingParams(max_tokens=4))
    while engine.has_unfinished_requests():
        engine.step()
    plain = read_model(checkpoints.get("llama", dtype="bfloat16")).weight_bytes
    assert read_model(tmp_path).weight_bytes < plain


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"quant_method": "gptq", "bits": 3}, "weights of 3 bits are not read; those of 4 and 8 are"),
    "gemv": ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ version 'gemv' is not read; gemm is"),
    "fp8": (compressed(8, 0, "float-quantized"), "in format 'float-quantized' are not read"),
    "form": ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "'checkpoint_format' 'marlin'"),
    "other": ({"quant_method": "bitsandbytes"}, r"\(bitsandbytes\) are not supported; use the checkpoint in .*gptq"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_scheme_that_is_not_read_is_named(checkpoints, tmp_path: Path, name: str) -> None:
    section, expected = BAD[name]
    config = json.loads((checkpoints.get("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    with pytest.raises(ModelError, match=expected):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"qzeros": None}, "qzeros' is missing"),
        ({"qweight": torch.zeros(4, 64)}, r"qweight' is torch.float32 \[4, 64\], expected torch.int32"),
        ({"scales": torch.full((2, 64), torch.nan).half()}, "has scales that are not finite"),
        ({"scales": torch.ones(1, 64).half()}, r"has scales \[64, 1\] and zeros \[64, 2\], expected 2 groups"),
        ({"g_idx": torch.full((64,), 9, dtype=torch.int32)}, "has inputs of groups beyond its 2"),
    ],
    ids=["missing", "dtype", "nan", "groups", "index"],
)
def test_a_broken_matrix_is_named(checkpoints, tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    quantise(checkpoints.get("llama"), tmp_path, "gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    for part, tensor in change.items():
        del tensors[f"model.layers.0.self_attn.q_proj.{part}"]
        if tensor is not None:
            tensors[f"model.layers.0.self_attn.q_proj.{part}"] = tensor
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=expected):
        PagedModel(tmp_path)
