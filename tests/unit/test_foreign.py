"""vLLM's and llama.cpp's flags: those of everyday use never end in a bare error."""

from __future__ import annotations

import pytest

from kvtrove.cli.flags import SETTINGS
from kvtrove.config import EngineConfig
from kvtrove.foreign import FLAGS, MODEL, translate

OWN = {"--kv", "--max-model-len", "--prefix-caching", "--no-prefix-caching", "--tool-format", "--log-level", "--seed"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["-c", "4096"], ["--max-model-len", "4096"]),
        (["--ctx-size=4096"], ["--max-model-len", "4096"]),
        (["--enable-prefix-caching"], ["--prefix-caching"]),
        (["--enable-auto-tool-choice", "--tool-call-parser", "hermes"], ["--tool-format", "hermes"]),
        (["--gpu-memory-utilization", "0.9", "x"], ["x"]),
        (["-fa", "on", "x"], ["x"]),
        (["-fa", "x"], ["x"]),
        (["-tp", "1"], []),
        (["-v"], ["--log-level", "debug"]),
        (["--", "-c", "4096"], ["--", "-c", "4096"]),
        (["--no-such-flag", "1"], ["--no-such-flag", "1"]),
    ],
)
def test_flags_are_replaced(given: list[str], kept: list[str]) -> None:
    assert translate(given, OWN).args == kept


def test_a_flag_of_the_command_keeps_its_own_meaning() -> None:
    assert translate(["-s", "1"], OWN | {"-s"}).args == ["-s", "1"]
    assert translate(["-n", "3"], OWN).args == ["-n", "3"]


def test_model_is_taken_out() -> None:
    found = translate(["-m", "x.gguf", "--kv", "1GiB"], OWN)
    assert (found.model, found.args) == ("x.gguf", ["--kv", "1GiB"])


def test_what_sets_nothing_says_so() -> None:
    assert translate(["-ngl", "99"], OWN).notes == [
        "-ngl sets nothing here: a model is on one device, which --device chooses"
    ]
    assert all(found.note for found in FLAGS.values() if not found.ours)


@pytest.mark.parametrize(
    ("given", "message"),
    [(["-tp", "2"], "-tp 2: this engine runs on one device"), (["-c"], "-c needs a value")],
)
def test_what_cannot_be(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translate(given, OWN)


def test_python_takes_the_same_names() -> None:
    config, ignored = EngineConfig.from_kwargs("m", kv_cache_memory_bytes=2**30, enforce_eager=True, swap_space=4)
    assert (config.kv, ignored) == (2**30, ["enforce_eager", "swap_space"])


def test_no_flag_of_the_table_is_one_of_the_engine() -> None:
    assert not {f"--{name.replace('_', '-')}" for name in SETTINGS if name != "enable_prefix_caching"} & set(FLAGS)
    assert all(found.ours[0] != MODEL or len(found.ours) == 1 for found in FLAGS.values() if found.ours)
