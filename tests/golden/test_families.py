"""Logits of every family equal those of Hugging Face transformers, however the same tokens are cut into steps."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from kvtrove.kernels.linear import Kind, PackedWeights
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from kvtrove.plan.source import read_model
from tests.checkpoints import FAMILIES, PROVEN_IN_FULL, VOCAB, Checkpoints, make_gemma3_with_vision, make_with_vision
from tests.golden.harness import PagedModel, expected_logits, hugging_face

TOLERANCE = 1e-4  # of float32 logits whose standard deviation is above 1


def prompts(*lengths: int) -> list[list[int]]:
    return [random.Random(i).choices(range(4, VOCAB), k=length) for i, length in enumerate(lengths)]


def difference(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max())  # NaN compares false with any bound


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_chunked_and_single_token_steps_give_the_logits_of_transformers(
    family: str, checkpoints: Checkpoints
) -> None:
    directory = checkpoints.get(family)
    (tokens,) = prompts(61)
    expected = expected_logits(hugging_face(directory), tokens)
    assert expected.std() > 0.5, "flat logits would prove nothing"
    model = PagedModel(directory)
    whole = model.step({0: tokens})[0]
    chunks = [model.step({1: part})[1] for part in (tokens[:7], tokens[7:8], tokens[8:30], *([t] for t in tokens[30:]))]
    assert difference(whole, expected) < TOLERANCE
    assert difference(torch.cat(chunks), expected) < TOLERANCE


@pytest.mark.parametrize("family", PROVEN_IN_FULL)
def test_a_batch_that_mixes_prefills_and_decodes_gives_the_logits_of_transformers(
    family: str, checkpoints: Checkpoints
) -> None:
    directory = checkpoints.get(family)
    sequences = prompts(50, 35, 38, 41)  # all beyond the original context of phi3_long
    reference = hugging_face(directory)
    model = PagedModel(directory)
    seen: dict[int, list[Tensor]] = {s: [] for s in range(4)}
    steps = [
        {0: 20, 1: 5},
        {2: 30, 0: 1, 1: 1},  # a prefill beside two decodes
        {0: 1, 1: 9, 2: 1, 3: 40},
        *[{0: 1, 1: 1, 2: 1} for _ in range(7)],
        {3: 1, 0: 21, 1: 13},
    ]
    done = dict.fromkeys(range(4), 0)
    for step in steps:
        work = {s: sequences[s][done[s] : done[s] + n] for s, n in step.items()}
        for s, logits in model.step(work).items():
            seen[s].append(logits)
            done[s] += len(work[s])
    assert done == {0: 50, 1: 35, 2: 38, 3: 41}
    for s, tokens in enumerate(sequences):
        assert difference(torch.cat(seen[s]), expected_logits(reference, tokens)) < TOLERANCE


@pytest.mark.parametrize("family", PROVEN_IN_FULL)
def test_bfloat16_is_as_close_as_transformers_is(family: str, checkpoints: Checkpoints) -> None:
    """Two correct bfloat16 computations differ by rounding, so closeness is measured by what rounding itself does.

    A decided position is one where the likeliest token leads by a tenth of the logits' spread in float32. Experts make
    rare large differences: rounding that sends a token to another expert changes its logits altogether, as it does
    between the eager and the default implementation of transformers. So do states (Qwen3-Next), which are corrected by
    what they get wrong, chunk by chunk in transformers and token by token here.
    """
    moe = any(word in family for word in ("mix", "moe", "deepseek", "oss", "next", "3_5"))
    ours, theirs, apart, agree = [], [], [], []
    for seed in range(2):
        directory = checkpoints.get(family, seed=seed)
        model, half, full = (
            PagedModel(directory, "bfloat16"),
            hugging_face(directory, "bfloat16"),
            hugging_face(directory),
        )
        for s, tokens in enumerate(prompts(80, 80)):
            got = torch.cat(
                [model.step({s: part})[s] for part in (tokens[:40], tokens[40:74], *([t] for t in tokens[74:]))]
            )
            expected, truth = expected_logits(half, tokens), expected_logits(full, tokens)
            apart.append(divergence(expected, got))
            ours.append(divergence(truth, got))
            theirs.append(divergence(truth, expected))
            lead = truth.topk(2).values.diff().neg()[:, 0]
            agree.append((got.argmax(-1) == expected.argmax(-1))[lead > 0.1 * truth.std()])
    decided = torch.cat(agree).float()
    assert len(decided) > 150
    assert decided.mean() >= (0.96 if moe else 0.99)
    assert torch.cat(ours).mean() < torch.cat(theirs).mean() * (1.5 if moe else 1.2)
    assert torch.cat(apart).median() < 1.5e-3
    if not moe:
        assert torch.cat(apart).mean() < 1e-3


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence per position, in nats, of the distributions of logits p and q."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("mistral", "window"),
        ("gemma3", "window"),
        ("phi3", "window"),
        ("qwen2_sliding", "window"),
        ("gemma2", "attention_softcap"),
        ("gemma2", "logit_softcap"),
        ("gemma2", "query_scale"),
        ("qwen3", "qk_norm"),
        ("llama_biased", "bias"),
        ("llama3", "rope"),
        ("gpt_oss", "sinks"),
    ],
)
def test_the_comparison_sees_small_mistakes(family: str, change: str, checkpoints: Checkpoints) -> None:
    """Otherwise equal logits would only mean that the tiny models do not use what they are there for."""
    directory = checkpoints.get(family)
    (tokens,) = prompts(61)
    right = PagedModel(directory).step({0: tokens})[0]
    wrong = PagedModel(directory)
    _break(wrong, change)
    assert difference(wrong.step({0: tokens})[0], right) > 100 * TOLERANCE


def _break(model: PagedModel, change: str) -> None:
    spec, decoder = model.spec, model.model
    if change == "window":
        for i, layer in model.layers.items():
            if window := spec.layers[i].kv.retention.kept():
                model.layers[i] = replace(layer, retention=replace(layer.retention, window=window - 1))  # type: ignore[type-var]
    elif change == "attention_softcap":
        model.layers = {i: replace(layer, softcap=None) for i, layer in model.layers.items()}
    elif change == "sinks":
        model.layers = {i: replace(layer, sink_logits=None) for i, layer in model.layers.items()}
    elif change == "query_scale":
        model.layers = {i: replace(layer, scale=layer.k_dim**-0.5) for i, layer in model.layers.items()}
    elif change == "logit_softcap":
        model.model = replace(decoder, spec=replace(spec, logit_softcap=None))
    elif change == "rope":
        plain = {rope: replace(table, inv_freq=table.inv_freq * 1.01) for rope, table in decoder.ropes.items()}
        model.model = replace(decoder, ropes=plain)
    else:
        first = decoder.layers[0]
        attention = first.attention
        if change == "qk_norm":
            assert isinstance(attention.k_norm, RMSNorm)
            attention = replace(
                attention, k_norm=replace(attention.k_norm, weight=torch.ones(spec.layers[0].cache.k_dim))
            )
        else:
            attention = replace(attention, o=replace(attention.o, bias=None))
        model.model = replace(decoder, layers=(replace(first, attention=attention), *decoder.layers[1:]))


def test_the_text_part_of_a_multimodal_gemma3_is_read(tmp_path: Path) -> None:
    make_gemma3_with_vision(tmp_path)
    (tokens,) = prompts(45)
    model = PagedModel(tmp_path)
    assert model.spec.architecture == "Gemma3ForConditionalGeneration"
    assert model.spec.eos_token_ids == (2, 3), "they stand outside text_config"
    assert difference(model.step({0: tokens})[0], expected_logits(hugging_face(tmp_path), tokens)) < TOLERANCE


@pytest.mark.parametrize("name", ["Gemma4", "Mistral3", "Qwen3VL"])
def test_the_text_part_of_checkpoints_that_see_is_read(name: str, tmp_path: Path) -> None:
    reference = make_with_vision(name, tmp_path)
    (tokens,) = prompts(45)
    model = PagedModel(tmp_path)
    assert model.spec.architecture == f"{name}ForConditionalGeneration"
    assert difference(model.step({0: tokens})[0], expected_logits(reference, tokens)) < TOLERANCE


def test_layers_that_read_the_keys_of_the_one_before_them(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Hunyuan's cross-layer attention, with a norm of its own for keys that the layer before has stored.

    transformers has no such layers: in the reference, every second one takes keys without norm, and values, as they
    left the projections of the one before.
    """
    plain = checkpoints.get("hunyuan_v1", num_hidden_layers=4)
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    config = json.loads((plain / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "use_cla": True, "cla_share_factor": 2}))
    reference = hugging_face(plain)
    for first, second in zip(reference.model.layers[::2], reference.model.layers[1::2], strict=True):
        for part in ("k_proj", "v_proj"):
            kept: list[Tensor] = []
            getattr(first.self_attn, part).register_forward_hook(lambda _, x, y, kept=kept: kept.append(y))
            getattr(second.self_attn, part).register_forward_hook(lambda _, x, y, kept=kept: kept.pop())
    model, (tokens,) = PagedModel(tmp_path), prompts(40)
    got = torch.cat([model.step({0: part})[0] for part in (tokens[:30], *([t] for t in tokens[30:]))])
    assert difference(got, expected_logits(reference, tokens)) < TOLERANCE
    bytes_of = [sum(map(cache.layer_bytes, cache.groups[0].layers)) for cache in (model.cache, PagedModel(plain).cache)]
    assert bytes_of[0] * 2 == bytes_of[1]


def test_experts_in_mxfp4_give_the_logits_of_what_they_stand_for(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Random codes and exponents; transformers computes with what its own decoder makes of them.

    As numbers, and kept as codes, which x meets in 15 bits.
    """
    plain = checkpoints.get("gpt_oss", dtype="bfloat16")
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    tensors, numbers, generator = load_file(plain / "model.safetensors"), {}, torch.Generator().manual_seed(1)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(121, 126, blocks.shape[:-1], generator=generator, dtype=torch.uint8)
        numbers[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    reference = hugging_face(plain)
    assert not reference.load_state_dict(numbers, strict=False).unexpected_keys
    (tokens,) = prompts(40)
    expected = expected_logits(reference, tokens)
    assert difference(PagedModel(tmp_path).step({0: tokens})[0], expected) < TOLERANCE
    kept = PagedModel(tmp_path, products=Products(Precision("float32", "float32", "gguf")))
    experts = [expert for layer in kept.model.layers for expert in layer.mlp.experts]
    assert {product.weights.kind for one in experts for product in (one.gate_up.product, one.down)} == {"fp4"}
    assert difference(kept.step({0: tokens})[0], expected) < 50 * TOLERANCE
    wide, narrow = read_model(tmp_path, "bfloat16").weight_bytes, read_model(tmp_path).weight_bytes
    assert wide == read_model(plain).weight_bytes
    assert wide - narrow == sum(one.numel() for one in numbers.values()) * 23 // 16, "4.5 bits a number"


def test_tied_and_untied_output_matrices(checkpoints: Checkpoints) -> None:
    (tokens,) = prompts(20)
    for family, tied in (("llama", True), ("gemma2", False), ("qwen3", True)):
        directory = checkpoints.get(family, tie_word_embeddings=tied)
        model = PagedModel(directory)
        assert (model.model.head.weight is model.model.embedding.weight) == tied
        assert difference(model.step({0: tokens})[0], expected_logits(hugging_face(directory), tokens)) < TOLERANCE


@pytest.mark.parametrize("family", PROVEN_IN_FULL)
def test_own_products_on_bf16_weights_give_the_logits_of_float32(family: str, checkpoints: Checkpoints) -> None:
    """Weights in bf16, everything else in float32: only the order of sums differs from float32 throughout."""
    directory = checkpoints.get(family, dtype="bfloat16")
    (tokens,) = prompts(61)
    products = Products(Precision("bfloat16", "float32"), wanted="own")
    model = PagedModel(directory, "float32", products=products)
    got = torch.cat([model.step({0: part})[0] for part in (tokens[:30], tokens[30:33], *([t] for t in tokens[33:]))])
    assert difference(got, expected_logits(hugging_face(directory), tokens)) < TOLERANCE


@pytest.mark.parametrize("family", PROVEN_IN_FULL)
def test_int8_weights_stay_close_to_float32(family: str, checkpoints: Checkpoints) -> None:
    """Per-output scales: the rounding of a weight is uniform within 1/254 of the largest of its row.

    Where rounding may send a token to another expert, and that in every layer (DeepSeek), most positions differ more.
    """
    directory = checkpoints.get(family)
    (tokens,) = prompts(61)
    model = PagedModel(directory, products=Products(Precision("float32", "float32", "int8")))
    apart = divergence(expected_logits(hugging_face(directory), tokens), model.step({0: tokens})[0])
    assert 0 < apart.median() < (1e-2 if family in ("deepseek_v3", "glm4_moe_lite", "qwen3_next") else 5e-3)


@pytest.mark.parametrize("family", ["llama3", "qwen2"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights_give_the_logits_of_what_they_stand_for(
    kind: Kind, family: str, checkpoints: Checkpoints
) -> None:
    """transformers with every matrix replaced by what is stored of it; x has 15 or 16 bits."""
    directory = checkpoints.get(family)
    (tokens,) = prompts(61)
    reference = hugging_face(directory)
    for layer in (part for part in reference.modules() if isinstance(part, torch.nn.Linear)):
        weights = PackedWeights(layer.out_features, layer.in_features, kind)
        weights.fill(0, layer.weight.detach())
        weights.gather(torch.arange(layer.out_features), layer.weight.data)
    model = PagedModel(directory, products=Products(Precision("float32", "float32", kind)))
    got = torch.cat([model.step({0: part})[0] for part in (tokens[:40], *([t] for t in tokens[40:]))])
    assert difference(got, expected_logits(reference, tokens)) < 50 * TOLERANCE
