"""Settings: how sizes are read, which values are refused and in which words, and where names come from."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.config import ConfigError, EngineConfig, Environment, nearest, parse_size, parse_tokens


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("2000000000", 2_000_000_000),
        ("8GiB", 8 * 2**30),
        ("8gib", 8 * 2**30),
        (" 8 GiB ", 8 * 2**30),
        ("8Gi", 8 * 2**30),
        ("8GB", 8 * 10**9),
        ("8G", 8 * 10**9),
        ("512 MiB", 512 * 2**20),
        ("1.5KiB", 1536),
        ("2TiB", 2 * 2**40),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "8 apples", "-8GiB", "8iB", "1e9", "8GiBs", True])
def test_what_is_no_size_is_refused_with_examples(text: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(text, "kv")
    assert str(caught.value) == f"kv: cannot read {text!r} as a size; write for example 8GiB, 512MiB or 2000000000"


@pytest.mark.parametrize("text", [0, -5, "0", "0GiB", "0.0001K"])
def test_a_size_of_nothing_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(text, "kv")
    assert str(caught.value) == f"kv: {text!r} must be larger than zero"


@given(st.integers(1, 2**50))
def test_a_plain_number_is_its_own_size_and_token_count(number: int) -> None:
    assert parse_size(str(number)) == parse_tokens(str(number)) == number


@pytest.mark.parametrize(
    ("text", "count"), [(4096, 4096), ("4096", 4096), ("32k", 32768), ("32K", 32768), ("1.5k", 1536), ("1M", 2**20)]
)
def test_token_counts_are_powers_of_two(text: str | int, count: int) -> None:
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["", "k", "32kb", "-1k", "lots"])
def test_what_is_no_token_count_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tokens(text, "max_model_len")
    message = f"max_model_len: cannot read {text!r} as a number of tokens; write for example 4096 or 32k"
    assert str(caught.value) == message


@pytest.mark.parametrize("text", [0, "0k", -1])
def test_a_token_count_of_nothing_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigError, match=r"max_model_len: .* must be larger than zero"):
        parse_tokens(text, "max_model_len")


WRONG = [
    ({"model": ""}, "model: give the directory of a checkpoint"),
    ({"dtype": "bf61"}, "dtype: 'bf61' is not one of auto, bfloat16, float16, float32"),
    ({"huge_pages": "large"}, "huge_pages: 'large' is not one of auto, hugetlb, off"),
    ({"device": "tpu"}, "device: 'tpu' is not one of auto, cpu, cuda, cuda:N"),
    ({"device": "cuda:"}, "device: 'cuda:' is not one of auto, cpu, cuda, cuda:N"),
    ({"block_size": 0}, "block_size: 0 must be a whole number of at least 1"),
    ({"block_size": 16.0}, "block_size: 16.0 must be a whole number of at least 1"),
    ({"max_num_seqs": True}, "max_num_seqs: True must be a whole number of at least 1"),
    ({"max_num_batched_tokens": -1}, "max_num_batched_tokens: -1 must be a whole number of at least 1"),
    ({"max_concurrent_prefills": "4"}, "max_concurrent_prefills: '4' must be a whole number of at least 1"),
    (
        {"max_num_batched_tokens": 100, "max_num_seqs": 200},
        "max_num_batched_tokens: 100 is smaller than max_num_seqs (200), so not every running sequence could advance; "
        "raise it to 200",
    ),
    ({"kv": "1GiB", "num_blocks": 5}, "kv and num_blocks say the same thing twice; give one of them"),
    ({"kv": "much"}, "kv: cannot read 'much' as a size; write for example 8GiB, 512MiB or 2000000000"),
    ({"num_blocks": 0}, "num_blocks: 0 must be a whole number of at least 1"),
    ({"max_model_len": "0"}, "max_model_len: '0' must be larger than zero"),
    ({"check": 3}, "check: 3 is not one of 0 (off), 1 (when idle), 2 (every step)"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**({"model": "m"} | settings))
    assert str(caught.value).startswith(message)


def test_sizes_and_counts_are_numbers_once_the_config_exists() -> None:
    config, _ = EngineConfig.from_kwargs("m", kv="1GiB", max_model_len="32k")
    assert (config.kv, config.max_model_len) == (2**30, 32768)


def test_the_check_level_comes_from_the_environment_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTROVE_CHECK", "1")
    assert EngineConfig("m").check == 1
    assert EngineConfig("m", check=0).check == 0


def test_tests_run_with_all_checks_on() -> None:
    """tests/conftest.py sets the level for everybody; a lower one would let broken invariants pass."""
    assert Environment.read().check == 2


def test_a_config_cannot_change_after_it_was_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig("m").block_size = 0  # type: ignore[misc]


def test_our_names_and_those_of_vllm_are_accepted() -> None:
    config, ignored = EngineConfig.from_kwargs("m", num_gpu_blocks_override=7, max_num_seqs=3)
    assert (config.num_blocks, config.max_num_seqs, ignored) == (7, 3, [])
    assert EngineConfig.from_kwargs("m", kv_cache_memory_bytes="1GiB")[0].kv == 2**30


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kv_cache_dtype": "fp8"}, "fp8"),
        ({"kv_cache_dtype": "auto"}, "auto"),
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, "k=q8_0+v=q4_0"),
        ({"cache_type_v": "q8_0", "cache": "auto"}, "v=q8_0"),
    ],
)
def test_what_others_call_the_storage_becomes_a_recipe(given: dict[str, str], words: str) -> None:
    assert EngineConfig.from_kwargs("m", **given)[0].cache == words


@pytest.mark.parametrize(
    "given",
    [
        {"kv_cache_dtype": "fp8", "cache": "int8"},
        {"cache_type_k": "q8_0", "cache": "int8"},
        {"cache_type_k": "q8_0", "kv_cache_dtype": "fp8"},
    ],
)
def test_the_storage_is_said_once(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="say the same thing twice; give one of them"):
        EngineConfig.from_kwargs("m", **given)


def test_settings_without_a_meaning_here_are_reported() -> None:
    _, ignored = EngineConfig.from_kwargs("m", gpu_memory_utilization=0.9, tensor_parallel_size=1, quantization=None)
    assert ignored == ["gpu_memory_utilization", "tensor_parallel_size", "quantization"]


def test_more_than_one_device_is_not_ignored() -> None:
    """tensor_parallel_size=1 changes nothing; 2 would be a promise that is not kept."""
    with pytest.raises(ConfigError, match="unknown setting 'tensor_parallel_size'"):
        EngineConfig.from_kwargs("m", tensor_parallel_size=2)


def test_a_setting_given_under_both_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv and kv_cache_memory_bytes say the same thing twice"):
        EngineConfig.from_kwargs("m", kv="1GiB", kv_cache_memory_bytes="2GiB")


def test_an_unknown_setting_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'max_model_length' \(did you mean 'max_model_len'\?\)"):
        EngineConfig.from_kwargs("m", max_model_length=5)


def test_a_word_like_no_other_gets_no_suggestion() -> None:
    assert nearest("zzzzzz", ["max_model_len", "kv"]) == ""


def test_the_environment_is_read_whole() -> None:
    environ = {"KVTROVE_CHECK": "1", "KVTROVE_ISA": "avx2", "KVTROVE_LOG": "debug", "HOME": "/root"}
    assert Environment.read(environ) == Environment(check=1, isa="avx2", log="debug")
    assert Environment.read({}) == Environment()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"KVTROVE_CHEK": "1"}, "unknown environment variable KVTROVE_CHEK (did you mean 'KVTROVE_CHECK'?)"),
        ({"KVTROVE_CHECK": "3"}, "KVTROVE_CHECK: '3' is not one of 0, 1, 2"),
        ({"KVTROVE_CHECK": "yes"}, "KVTROVE_CHECK: 'yes' is not one of 0, 1, 2"),
        ({"KVTROVE_LOG": "loud"}, "KVTROVE_LOG: 'loud' is not one of debug, info, warning, error"),
    ],
)
def test_a_wrong_environment_variable_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Environment.read(environ)
    assert str(caught.value) == message


@pytest.mark.parametrize("wrong", [0, -2, 1.5, "two", True, 5000])
def test_a_number_of_threads_that_cannot_be_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=f"threads: {wrong!r} is not a whole number between 1 and 1024; leave it out"):
        EngineConfig("model", threads=wrong)  # type: ignore[arg-type]


def test_speculation_in_our_words_and_in_vllms() -> None:
    ours = EngineConfig("m", speculation="ngram", num_speculative_tokens=5, prompt_lookup_max=4)
    given = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": None}
    assert EngineConfig.from_kwargs("m", speculative_config=given) == (ours, [])
    assert EngineConfig.from_kwargs("m", speculative_config=None) == (EngineConfig("m"), [])
    assert (EngineConfig("m", max_num_seqs=1).max_logit_rows, ours.max_logit_rows) == (1, 256)
    assert EngineConfig("m", max_num_seqs=1, speculation="suffix").max_logit_rows == 13


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "eagle", "num_speculative_tokens": 2}, "method 'eagle' is not one of ngram, suffix"),
        ({"num_speculative_tokens": 2}, "method None is not one of ngram, suffix"),
        ({"method": "ngram", "model": "tiny"}, "'model' has no meaning here"),
        ("ngram", "is not a dict such as"),
        ({"method": "ngram", "prompt_lookup_min": 9, "prompt_lookup_max": 4}, "prompt_lookup_min: 9 is more than"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens: 0 must be a whole number"),
    ],
)
def test_speculative_configs_that_cannot_work(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig.from_kwargs("m", speculative_config=config)
