"""A format for each layer under a budget: the order of changes, the recipe they are written as, and whole searches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtrove.config import ConfigError
from kvtrove.evaluate.evaluation import evaluate
from kvtrove.evaluate.fit import cheapest_first, joined
from kvtrove.evaluate.results import as_json, rows
from kvtrove.evaluate.settings import Settings
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from tests.checkpoints import CORPUS, Checkpoints

FOUR = KVCacheSpec(tuple(LayerKV(i, 2, 64, 64, dense("float32")) for i in range(4)), 16)


def test_what_costs_least_for_its_bytes_comes_first() -> None:
    """Layer 1 stores nothing of its own."""
    sizes = {"bf16": [16.0, 0.0, 16.0], "int8": [8.0, 0.0, 8.0], "int4r": [4.0, 0.0, 4.0]}
    costs = {"int8": {0: 0.8, 2: 0.1}, "int4r": {0: 0.9, 2: 4.1}}
    steps = [*cheapest_first(sizes, costs, "bf16")]
    assert [(first, last) for first, _, last in steps] == [
        ("bf16", "bf16"),
        ("bf16", "int8"),  # 0.1 for 8
        ("int4r", "int8"),  # 0.9 for 12, less than 0.8 for 8
        ("int4r", "int4r"),  # 4.0 for 4
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["int8"] * 4, "int8"),
        (["bf16", "int8", "int8", "bf16"], "bf16+layers=1,2:int8"),
        (["k=int8+v=int4r", "int8", "k=int8+v=int4r", "bf16"], "k=int8+v=int4r+layers=1:int8+layers=3:bf16"),
        (["int8", "int8", "k=int8+v=int4r", "int8"], "int8+layers=2:k=int8+layers=2:v=int4r"),
        (["first=32:bf16+int4r"] * 3 + ["int8"], "int8+layers=0,1,2:first=32:bf16+layers=0,1,2:int4r"),
    ],
)
def test_the_recipe_gives_each_layer_its_format(words: list[str], text: str) -> None:
    assert joined(words) == text
    whole = recipe(text)(FOUR)
    assert whole.layers == tuple(recipe(word)(FOUR).layers[layer] for layer, word in enumerate(words))


@pytest.fixture(scope="module")
def settings(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n".join(2 * CORPUS), encoding="utf-8")
    small = {"text": str(text), "text_tokens": 60, "context": 60, "lengths": (60,), "chunk": 32}
    return Settings(str(checkpoints.get("llama")), caches=("int8", "int4r"), parts=("text",), **small)  # type: ignore[arg-type]


def test_bits_are_kept_and_the_choice_is_measured_as_a_whole(settings: Settings, tmp_path: object) -> None:
    """Three layers of float32: 7.5 bits need int4r (6 bits at head_dim 16) in two of them, where int8 takes 9."""
    state = f"{tmp_path}/state.json"
    found = evaluate(replace(settings, fit_bits=7.5), state)
    assert found.fit is not None
    assert found.fit.bits == 7
    assert {name: sorted(layers) for name, layers in found.fit.layers.items()} == {
        "int8": [0, 1, 2],
        "int4r": [0, 1, 2],
    }
    exact, chosen = rows(found)
    assert chosen.name == found.fit.recipe
    assert chosen.bytes_per_token == pytest.approx(exact.bytes_per_token * 7 / 32)
    assert chosen.fidelity is not None
    assert chosen.fidelity.kl_mean > 0
    again = evaluate(replace(settings, fit_bits=7.5), state)
    assert as_json(again, "v") == as_json(found, "v")


def test_a_limit_of_kl_is_held_by_the_whole(settings: Settings) -> None:
    costs = [evaluate(replace(settings, caches=(name,))) for name in ("int8", "int4r")]
    int8, int4r = (row.fidelity.kl_mean for one in costs for row in rows(one)[1:] if row.fidelity)
    limit = (int8 + int4r) / 2
    found = evaluate(replace(settings, max_kl=limit))
    [_, chosen] = rows(found)
    assert chosen.fidelity is not None
    assert chosen.fidelity.kl_mean <= limit
    assert found.fit is not None
    assert 6 < found.fit.bits <= 9
    assert evaluate(replace(settings, max_kl=1e-12)).fit.recipe == "fp32"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit_bits": 3.0}, r"fit_bits: 3 bits are fewer than the smallest candidate takes, 6\.00: add .*kivi=2"),
        ({"fit_bits": 0.0}, r"fit_bits: 0 must be above 0, such as 4\.5"),
        ({"max_kl": -1.0}, r"max_kl: -1 must be above 0, such as 0\.01"),
        ({"max_kl": 1.0, "fit_bits": 4.0}, "give fit_bits or max_kl, not both"),
        ({"max_kl": 1.0, "parts": ("speed",)}, "layers are judged by text"),
        ({"max_kl": 1.0, "caches": ("window=16",)}, "'window=16' is more than a format"),
        ({"max_kl": 1.0, "caches": ("edges=1:int8",)}, "'edges=1:int8' is more than a format"),
        ({"least_top1": 90.0}, r"least_top1: 90 must lie between 0 and 1, such as 0\.9"),
    ],
)
def test_a_budget_that_cannot_be_is_told_what_can(settings: Settings, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(replace(settings, **change))  # type: ignore[arg-type]
