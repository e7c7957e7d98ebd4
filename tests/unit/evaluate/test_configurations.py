"""Names of caches: what each changes, how they are joined, and what an unknown one is told."""

from __future__ import annotations

import pytest

from kvtrove.config import ConfigError
from kvtrove.evaluate.configurations import DEFAULT, PLAIN, WITH_NUMBER, configuration, configurations
from kvtrove.kv.formats.dense import DenseFormat
from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, LayerKV

OWN = SlidingWindow(12)
CACHE = KVCacheSpec(
    (
        LayerKV(0, 2, 16, DenseFormat("float32")),
        LayerKV(1, 2, 16, DenseFormat("float32"), OWN),
        LayerKV(2, 2, 16, DenseFormat("float32"), source=0),
    ),
    block_size=4,
)


def test_exact_changes_nothing() -> None:
    assert configuration("exact")(CACHE) == CACHE


@pytest.mark.parametrize(("name", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_dtype_is_that_of_every_layer_and_changes_nothing_else(name: str, dtype: str) -> None:
    changed = configuration(name)(CACHE)
    assert {layer.format for layer in changed.layers} == {DenseFormat(dtype)}
    assert [layer.retention for layer in changed.layers] == [layer.retention for layer in CACHE.layers]


def test_a_window_is_that_of_layers_that_read_everything() -> None:
    changed = configuration("window=256")(CACHE)
    assert [layer.retention for layer in changed.layers] == [SlidingWindow(256), OWN, SlidingWindow(256)]
    assert CACHE.layers[0].retention == Full()


def test_joined_names_change_one_after_the_other() -> None:
    changed = configuration("window=8 + bf16")(CACHE)
    assert changed == configuration("bf16")(configuration("window=8")(CACHE))
    assert changed.layers[0] == LayerKV(0, 2, 16, DenseFormat("bfloat16"), SlidingWindow(8))


def test_the_exact_cache_comes_first_and_each_once() -> None:
    assert [one.name for one in configurations(("bf16", "window=4", "bf16", "exact"))] == ["exact", "bf16", "window=4"]


def test_every_registered_name_works() -> None:
    for name in (*PLAIN, *(f"{word}=16" for word in WITH_NUMBER), *DEFAULT):
        assert configuration(name)(CACHE).check() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bf61", r"'bf61' is not known \(did you mean 'bf16'\?\); there are exact, fp32, .*window=N"),
        ("windw=4", r"'windw=4' is not known \(did you mean 'window=N'\?\)"),
        ("window", r"'window' is not known \(did you mean 'window=N'\?\)"),
        ("bf16=3", "'bf16=3' is not known"),
        ("", "'' is not known; there are"),
        ("bf16+", r"'bf16\+' is not known; there are"),
        ("window=0", r"'window=0': window needs a whole number of at least 1, such as window=256"),
        ("window=1k", "window needs a whole number"),
        ("window=-4", "window needs a whole number"),
    ],
)
def test_an_unknown_name_is_told_the_nearest_known_one(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configuration(name)
