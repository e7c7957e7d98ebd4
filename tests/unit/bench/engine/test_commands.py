"""Every command end to end on a tiny model: JSON whose figures agree with each other, tables, comparison, bad input."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvtrove.bench.engine import timing
from kvtrove.bench.engine.decode import STEPS, measure_decode
from kvtrove.bench.engine.subject import Subject
from kvtrove.cli.main import app
from kvtrove.config import ConfigError
from tests.unit.bench.engine.conftest import CONFIG

COMMANDS: dict[str, tuple[str, ...]] = {
    "decode": ("--batch", "3", "--context", "100", "--repeats", "2"),
    "prefill": ("--prompt", "90", "--repeats", "2"),
    "ttft": ("--prefix", "100", "--repeats", "2"),
    "mixed": ("--requests", "4", "--batch", "3"),
    "kernel": ("--batch", "2", "--context", "100", "--repeats", "2"),
}
Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(config: str, tmp_path: Path) -> Measure:
    def run(command: str, *more: str, name: str = "out.json") -> dict[str, Any]:
        out = tmp_path / name
        args = ["bench", command, "--random-weights", config, *COMMANDS[command], *more, "--json", str(out)]
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(out.read_text())
        assert command in result.output, "the table names what was measured"
        return found

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_what_every_result_has(measure: Measure, command: str) -> None:
    found = measure(command)
    assert found["format"] == "kvtrove-bench-engine/1"
    assert found["kind"] == command
    assert not found["interrupted"]
    assert found["settings"]["dtype"] == found["settings"]["stored_as"] == "float32"
    assert found["read_gb_per_s"] > 0
    assert found["matmul_tflop_per_s"].keys() == {"float32", "bfloat16"}
    assert found["machine"]["threads"] >= 1
    for name, figure in found["figures"].items():
        level = found
        for part in name.split("."):
            level = level[part]
        assert level == figure["value"], name


def test_a_decode_result_adds_up(measure: Measure) -> None:
    found = measure("decode")
    assert found["efficiency"] * found["step_ms"] == pytest.approx(found["limit_ms"])
    assert found["tokens_per_s"] * found["step_ms"] == pytest.approx(3 * 1e3)
    nbytes = found["weight_bytes"] + found["kv_bytes"]
    assert found["limit_ms"] * found["read_gb_per_s"] == pytest.approx(nbytes * 1e-6)
    assert len(found["samples"]["step_s"]) == 2 * (STEPS - 1)
    assert found["notes"] == ["the cache was filled with random keys and values, not computed from the prompts"]
    heads, layers, dim = CONFIG["num_key_value_heads"], CONFIG["num_hidden_layers"], 8
    assert found["kv_bytes"] == round(3 * found["cached_tokens"] * 2 * heads * layers * dim * 4)
    assert abs(found["cached_tokens"] - 100) <= 16, "the nearest whole block"
    hidden, inner, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    layer = 2 * hidden * hidden + 2 * hidden * heads * dim + 3 * hidden * inner + 2 * hidden
    biases = hidden + 2 * heads * dim
    assert found["weight_bytes"] == 4 * (layers * (layer + biases) + hidden + vocab * hidden)


def test_a_smaller_format_reads_fewer_bytes(measure: Measure) -> None:
    assert measure("decode", "--cache", "bf16")["kv_bytes"] * 2 == measure("decode")["kv_bytes"]
    narrow = measure("decode", "--weights", "int8")
    assert narrow["settings"]["weights"] == "int8"
    assert narrow["weight_bytes"] < measure("decode")["weight_bytes"] / 2


def test_a_prefill_result_adds_up(measure: Measure) -> None:
    found = measure("prefill")
    assert found["efficiency"] * found["prefill_ms"] == pytest.approx(found["limit_ms"])
    assert found["tokens_per_s"] * found["prefill_ms"] == pytest.approx(90 * 1e3)
    assert found["tflop_per_s"] * found["prefill_ms"] == pytest.approx(found["flops"] * 1e-9)
    hidden, inner, vocab, wide = 32, 48, 200, 16
    weights = 2 * (2 * hidden * hidden + 2 * hidden * wide + 3 * hidden * inner + 2 * hidden + hidden + 2 * wide)
    pairs = 90 * 91 // 2
    expected = 2 * (90 * (weights + hidden) + vocab * hidden) + 2 * 4 * hidden * pairs
    assert found["flops"] == pytest.approx(expected)


def test_a_long_prompt_takes_several_steps(measure: Measure) -> None:
    short, long = (measure("prefill", "--prompt", str(n))["flops"] for n in (64, 256))
    assert long > 4 * short, "attention grows faster than the prompt"


def test_a_hit_finds_the_whole_prefix_and_a_cold_request_nothing(measure: Measure) -> None:
    found = measure("ttft")
    assert (found["cold_cached_tokens"], found["hit_cached_tokens"]) == (0, 96)
    assert found["speedup"] * found["hit_ms"] == pytest.approx(found["cold_ms"])


def test_the_mixed_workload_is_the_same_each_time(measure: Measure) -> None:
    one, other = measure("mixed"), measure("mixed")
    for name in ("prompt_tokens", "output_tokens", "cached_tokens"):
        assert one[name] == other[name]
    assert one["output_tokens_per_s"] * one["wall_s"] == pytest.approx(one["output_tokens"])
    assert len(one["samples"]["ttft_s"]) == 4


def test_kernels_are_found_through_the_engine(measure: Measure) -> None:
    found = measure("kernel")["kernels"]
    assert [name for name in found if name.startswith("copy_rows")]
    assert {"attention reference decode 2x65", "attention reference prefill 32"} <= found.keys()
    assert {f"linear 200x32 {rows}" for rows in ("1 row", "8 rows", "32 rows", "512 rows")} <= found.keys()
    for row in found.values():
        assert row.keys() == {"ms", "gb_per_s", "tflop_per_s", "of_limit"}
        assert row["gb_per_s"] > 0
    only = measure("kernel", "--only", "linear")["kernels"]
    assert all(name.startswith("linear") for name in only)


def test_windows_are_filled_and_read_as_far_as_they_reach(tmp_path: Path) -> None:
    path = tmp_path / "window.json"
    path.write_text(json.dumps(CONFIG | {"architectures": ["MistralForCausalLM"], "sliding_window": 40}))
    found = measure_decode(Subject(random_weights=str(path)), 3, 300, 1)
    assert found.facts["kv_bytes"] == 3 * 40 * 2 * 2 * 2 * 8 * 4


def test_a_checkpoint_is_measured_like_a_config() -> None:
    result = CliRunner().invoke(
        app, ["bench", "decode", "--model", "demo", "--context", "64", "--repeats", "1", "--json", "-", "-q"]
    )
    assert json.loads(result.stdout)["settings"]["model"].endswith("model")


def test_compare_shows_the_change_with_its_spread(measure: Measure, tmp_path: Path) -> None:
    for name, step, error in (("a.json", 10.0, 0.1), ("b.json", 8.0, 0.1)):
        found = measure("decode", name=name)
        found["figures"]["step_ms"] = {"value": step, "error": error}
        found["figures"]["tokens_per_s"] = {"value": 1000 / step, "error": 1.0}
        (tmp_path / name).write_text(json.dumps(found))
    result = CliRunner().invoke(app, ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert lines["step_ms"][3:5] == ["-20.0", "%"]
    assert lines["step_ms"][-1] == lines["tokens_per_s"][-1] == "unsure", "one run of each"
    measure("prefill", name="c.json")
    result = CliRunner().invoke(app, ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")])
    assert result.exit_code == 2
    assert "decode and prefill" in result.output


def test_ctrl_c_keeps_the_rounds_that_were_complete(config: str) -> None:
    done = 0

    def watch(what: str, rounds_done: int, total: int) -> None:
        nonlocal done
        done = rounds_done

    def clock() -> float:
        if done == 2:
            raise KeyboardInterrupt
        return time.perf_counter()

    found = measure_decode(Subject(random_weights=config), 2, 100, 5, watch=watch, clock=clock)
    assert found.interrupted
    assert len(found.samples["step_s"]) == 2 * (STEPS - 1)


def test_ctrl_c_is_exit_code_130_with_a_result(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounds(what: str, count: int, once: Callable[[int], None], watch: timing.Watch) -> bool:
        once(0)
        return True

    monkeypatch.setattr("kvtrove.bench.engine.prefill.rounds", rounds)
    out = tmp_path / "out.json"
    args = ["bench", "prefill", "--random-weights", config, "--prompt", "40", "--json", str(out)]
    assert CliRunner().invoke(app, args).exit_code == 130
    assert json.loads(out.read_text())["interrupted"]


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no model": (("decode",), "give one of --model DIR and --random-weights"),
    "two models": (("decode", "--model", "demo", "--random-weights", "CONFIG"), "give one of --model DIR"),
    "no such file": (("decode", "--random-weights", "no.json"), "no.json is no file; give the config.json"),
    "unknown cache": (
        ("decode", "--random-weights", "CONFIG", "--cache", "int3"),
        "cache: 'int3': 'int3' is not known",
    ),
    "unknown dtype": (("prefill", "--random-weights", "CONFIG", "--dtype", "x"), "dtype: 'x' is not one of"),
    "context beyond the model": (
        ("decode", "--random-weights", "CONFIG", "--context", "1k"),
        "1024 tokens are more than the 512 positions that the model knows",
    ),
    "prompt beyond the model": (("prefill", "--random-weights", "CONFIG", "--prompt", "2k"), "than the 512 positions"),
    "prefix beyond the model": (("ttft", "--random-weights", "CONFIG"), "than the 512 positions"),
    "prefix below a block": (("ttft", "--random-weights", "CONFIG", "--prefix", "8"), "--prefix 32 works"),
    "no batch": (("decode", "--random-weights", "CONFIG", "--batch", "0", "--context", "64"), "batch: 0 must be"),
    "no repeats": (("decode", "--random-weights", "CONFIG", "--repeats", "0", "--context", "64"), "repeats: 0"),
    "too many repeats": (
        ("decode", "--random-weights", "CONFIG", "--repeats", "999", "--context", "64"),
        "--repeats 127 works",
    ),
    "no requests": (("mixed", "--random-weights", "CONFIG", "--requests", "0"), "requests: 0 must be"),
    "unknown kernel": (
        ("kernel", "--random-weights", "CONFIG", "--context", "64", "--only", "linaer"),
        "did you mean 'linear'",
    ),
    "no folder": (("decode", "--random-weights", "CONFIG", "--json", "no/where.json"), "there is no such folder"),
    "no folder for a calibration": (("calibrate", "--model", "demo", "--out", "no/c.json"), "there is no such folder"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_mistakes_name_what_works(config: str, mistake: str) -> None:
    args, message = BAD[mistake]
    result = CliRunner().invoke(app, ["bench", *(config if arg == "CONFIG" else arg for arg in args)])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_repeats_that_an_error_names_work(tmp_path: Path) -> None:
    path = tmp_path / "short.json"
    path.write_text(json.dumps(CONFIG | {"max_position_embeddings": 20}))
    with pytest.raises(ConfigError, match="--repeats 4 works"):
        measure_decode(Subject(random_weights=str(path)), 1, 20, 5)
    found = measure_decode(Subject(random_weights=str(path)), 1, 20, 4)
    assert len(found.samples["step_s"]) == 4 * (STEPS - 1)


@pytest.mark.parametrize(("memory", "context"), [("530MiB", 512), ("526MiB", 256)])
def test_a_batch_that_does_not_fit_names_the_one_that_does(config: str, memory: str, context: int) -> None:
    subject = Subject(random_weights=config, memory=memory)
    with pytest.raises(ConfigError, match=r"batch: 4000 sequences of \d+ tokens need .* of KV cache") as refused:
        measure_decode(subject, 4000, context, 1)
    named = str(refused.value).rsplit("--batch ", 1)[1]
    batch = int(named.split()[0])
    assert 1 <= batch < 4000
    if "--context" in named:
        context = int(named.split()[2])
    found = measure_decode(subject, min(batch, 4), context, 1)
    assert found.figures["step_ms"].value
    with pytest.raises(ConfigError, match="batch"):
        measure_decode(subject, batch + 1, 512, 1)
