"""Recipes: what each word changes, how words are joined, what an unknown one is told."""

from __future__ import annotations

import pytest

from kvtrove.config import ConfigError
from kvtrove.kv.formats.dense import Dense, dense
from kvtrove.kv.formats.int4 import Int4Rotated
from kvtrove.kv.formats.int8 import Int8, int8
from kvtrove.kv.formats.words import FORMATS, examples, names_elsewhere
from kvtrove.kv.recipe import EXACT, known_words, recipe
from kvtrove.kv.retention import ChunkedLocal, Full, SinksAndWindow, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, KVFormat, LayerKV
from kvtrove.plan.kv import kv_bytes

OWN = SlidingWindow(12)
FP32 = dense("float32")
CACHE = KVCacheSpec(
    (
        LayerKV(0, 2, 64, 64, FP32),
        LayerKV(1, 2, 64, 64, FP32, OWN),
        LayerKV(2, 2, 64, 64, FP32, source=0),
        LayerKV(3, 2, 64, 64, FP32),
    ),
    block_size=16,
)


def names(words: str) -> list[str]:
    return [layer.format.name for layer in recipe(words)(CACHE).layers]


@pytest.mark.parametrize("words", ["auto", "exact", ""])
def test_auto_changes_nothing(words: str) -> None:
    assert recipe(words)(CACHE) == CACHE
    assert recipe(words).name == EXACT


@pytest.mark.parametrize("word", [word for word in examples() if "FILE" not in word])
def test_a_format_is_that_of_every_layer_and_changes_nothing_else(word: str) -> None:
    changed = recipe(word)(CACHE)
    assert len({layer.format for layer in changed.layers}) == 1
    assert [layer.retention for layer in changed.layers] == [layer.retention for layer in CACHE.layers]
    assert recipe(word).name == word


def test_k_and_v_apart() -> None:
    mixed = KVFormat(Int8("k"), Int4Rotated("v"))
    assert {layer.format for layer in recipe("k=int8+v=int4r")(CACHE).layers} == {mixed}
    assert {layer.format for layer in recipe("v=int4r+int8")(CACHE).layers} == {mixed}, "sides come after both"
    assert {layer.format for layer in recipe("v=int8")(CACHE).layers} == {KVFormat(Dense("k", "float32"), Int8("v"))}


def test_layers_of_their_own() -> None:
    assert names("edges=1:int8+int4r") == ["int8", "int4r", "int4r", "int8"]
    assert names("int4r + layers=1,2:bf16") == ["int4r", "bfloat16", "bfloat16", "int4r"]
    assert names("sliding:int8") == ["float32", "int8", "float32", "float32"]
    assert names("full:v=int8") == ["k=float32+v=int8", "float32", "k=float32+v=int8", "k=float32+v=int8"]


def test_a_rule_is_that_of_layers_that_read_everything() -> None:
    for words, rule in (
        ("window=256", SlidingWindow(256)),
        ("sinks=4+window=1024", SinksAndWindow(4, 1024)),
        ("chunk=64", ChunkedLocal(64)),
    ):
        assert [layer.retention for layer in recipe(words)(CACHE).layers] == [rule, OWN, rule, rule]
    assert CACHE.layers[0].retention == Full()
    assert recipe("window=8+int8")(CACHE).layers[3] == LayerKV(3, 2, 64, 64, int8(), SlidingWindow(8))


def test_a_side_that_is_read_out_of_the_other_stays_so() -> None:
    latent = LayerKV(0, 1, 576, 512, KVFormat(Dense("k", "bfloat16"), None))
    changed = recipe("int8")(KVCacheSpec((latent,), 16))
    assert changed.layers[0].format == KVFormat(Int8("k"), None)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("bfloat16", "bf16"),
        ("fp8_e4m3", "fp8"),
        ("int8_per_token_head", "int8"),
        ("k=q8_0+v=q4_0", "k=int8+v=int4r"),
        ("edges=2:f16+int4_per_token_head", "edges=2:fp16+int4r"),
    ],
)
def test_names_of_other_engines_mean_ours(foreign: str, ours: str) -> None:
    assert recipe(foreign).name == ours


def test_first_tokens_lie_otherwise_where_they_are_read_to_the_end() -> None:
    cache = recipe("first=32:bf16+int4r+layers=3:bf16")(CACHE)
    stored = [None if layer.first is None else (layer.first.tokens, layer.first.format) for layer in cache.layers]
    assert stored == [(32, dense("bfloat16")), None, None, None], "a window, another's storage, the same format"
    first, plain = cache.groups[-1], recipe("int4r+layers=3:bf16")(CACHE)
    assert [group.offsets for group in cache.groups[:-1]] == [group.offsets for group in plain.groups]
    assert (first.is_beginning, [layer.layer for layer in first.layers]) == (True, [0])
    assert cache.block_bytes == plain.block_bytes, "first tokens make no row larger"
    assert cache.blocks_for(1000, 64) == plain.blocks_for(1000, 64) + 2
    assert cache.blocks_for(20, 64) == plain.blocks_for(20, 64) + 2
    assert kv_bytes(cache).per_token == kv_bytes(plain).per_token
    assert kv_bytes(cache).constant - kv_bytes(plain).constant == 32 * 2 * 2 * 64 * 2
    assert cache.fingerprint != plain.fingerprint


def test_names_elsewhere() -> None:
    assert names_elsewhere(Int8("k")) == ("int8_per_token_head", "q8_0")
    assert names_elsewhere(Dense("k", "bfloat16")) == ("bfloat16", "bf16")
    assert names_elsewhere(None) == ("", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bf61", r"'bf61' is not known \(did you mean 'bf16'\?\); there are fp32, .*window=N"),
        ("windw=4", r"'windw' is not known \(did you mean 'window'\?\)"),
        ("window", "window needs a whole number of at least 1, such as window=1024"),
        ("bf16=3", "bf16 takes no value; write bf16"),
        ("kivi", "kivi= is not one of kivi=2, kivi=4"),
        ("bf16+", "'' is not known; there are"),
        ("window=0", "window needs a whole number of at least 1, such as window=1024"),
        ("window=1k", "window needs a whole number"),
        ("k=window=4", "'window' is not known"),
        (
            "edge=2:int8",
            r"'edge' names no layers \(did you mean 'edges'\?\); there are edges, layers, full, sliding, first",
        ),
        ("edges=x:int8", "edges needs a whole number of at least 1, such as edges=4"),
        ("layers=4:int8", "there is no layer 4, the 4 layers count from 0 to 3"),
        ("int8+bf16", "says twice how to store or keep the same"),
        ("k=int8+k=bf16", "says twice"),
        ("window=4+window=5", "says twice"),
        ("sinks=4", "sinks go with a window, such as sinks=4"),
        ("chunk=4+window=4", "a chunk and a window contradict each other"),
        ("first=x:int8", "first needs a whole number of at least 1, such as first=64"),
        ("first=32:window=64", "first=32 names how tokens are stored, such as first=32:bf16"),
        ("first=16:bf16+first=32:k=int8+int4r", "first=16 and first=32 contradict each other"),
        ("first=40:bf16+int4r", "first=40 is no multiple of the block size 16: write first=48"),
        ("first=32:kivi=2+int4r", "stored one by one, as kivi=2 does not: take bf16, int8 or int4r"),
        ("first=32:fp32", "no layer reads first tokens to the end that it stores otherwise"),
        ("first=32:bf16+window=64", "no layer reads first tokens to the end"),
        ("quest=0", "quest=0 needs the tokens of the blocks that are read, such as quest=1024"),
        ("doublesparsity", "doublesparsity= needs the part .* and a calibration, such as doublesparsity=1/16@FILE"),
        ("doublesparsity=16@there", "doublesparsity=16@there needs the part .* such as doublesparsity=1/16@FILE"),
        ("doublesparsity=1/1@there", "doublesparsity=1/1@there needs the part"),
        ("doublesparsity=1/16@no-such-file", "no-such-file.*kvtrove calibrate"),
        ("first=32:bf16+quest=64+int8", "goes with no selection of blocks"),
        ("first=32:bf16+int8+keydiff=0.5", "stores first tokens otherwise, and kept tokens have new places"),
        ("layers=0:window=4", r"cannot work: layer 2: differs in heads or retention from its source 0"),
    ],
)
def test_a_wrong_recipe_is_told_what_works(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(words)(CACHE)


def test_every_word_is_listed() -> None:
    assert {word.partition("=")[0] for word in known_words()} >= {*FORMATS, "k", "v", "window", "sinks", "chunk"}
