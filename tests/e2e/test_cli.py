"""The commands on the embedded model: what they print, in which form, and what they leave alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import kvtrove
from kvtrove.cli.main import COMMANDS
from kvtrove.cli.options import EngineOptions, SamplingOptions
from kvtrove.config import EngineConfig
from kvtrove.request import SamplingParams

Run = Callable[..., Any]
GREEDY = ("--temperature", "0", "--max-tokens", "6", "--ignore-eos")


def objects(result: Any) -> list[dict[str, Any]]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


# ---- kvtrove ----


def test_help_and_version_import_no_torch(shell: Run, tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(
        "import contextlib, sys\n"
        "from kvtrove.cli.main import app\n"
        "for args in (['--help'], ['generate', '--help'], ['chat', '--help'], ['--version'], ['generate', 'demo']):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        app(args)\n"
        "    if args == ['--help']:\n"
        "        print('kvtrove.cli.generate' in sys.modules)\n"
        "print('torch' in sys.modules)\n"
    )
    lines = shell(f"python {script}").out.splitlines()
    assert [line for line in lines if line in ("False", "True")] == ["False", "False"]


def test_version(run: Run) -> None:
    assert run("--version").out == f"kvtrove {kvtrove.__version__}\n"


def test_without_a_command_it_lists_them(run: Run) -> None:
    result = run()
    assert result.code == 0
    assert all(f"{name} " in result.out for name in COMMANDS)
    assert all(text in result.out for text in COMMANDS.values()), "in one line each"
    assert "--memory" in run("plan", "--help").out, "the list of commands stands in nobody's way"


def test_a_command_that_is_not_there_names_the_nearest(run: Run) -> None:
    result = run("doktor")
    assert (result.code, result.err) == (2, "error: No such command 'doktor' (did you mean 'doctor'?).\n")


def test_every_setting_of_the_engine_is_a_flag_with_the_same_default() -> None:
    flags = {flag.name: flag.default for flag in EngineOptions.flags()}
    config = {f.name: f.default for f in fields(EngineConfig)}
    only_in_config = {"model", "seed", "warm_up"}  # an argument of its own; --seed is the request's; a flag of serve
    other_names = {"kv_cache_dtype": None, "cache_type_k": None, "cache_type_v": None}  # of `cache`, in other engines
    assert flags == other_names | {name: default for name, default in config.items() if name not in only_in_config}


def test_a_flag_has_the_values_of_its_setting_in_its_help(run: Run) -> None:
    """The texts are written once, beside the values that the setting takes."""
    words = " ".join(run("generate", "--help").out.replace("│", " ").split())
    for field in fields(EngineConfig):
        for value in field.metadata.get("choices", ()):
            assert value in words, (field.name, value)


def test_every_sampling_flag_is_a_sampling_parameter_with_the_same_default() -> None:
    defaults = {f.name: f.default for f in fields(SamplingParams)}
    for flag in fields(SamplingOptions):
        if flag.name != "max_tokens":  # 16 is vLLM's default, short for a person who looks at it
            assert flag.default in (None, defaults[flag.name]), flag.name  # None: as the checkpoint recommends


# ---- generate ----


def test_one_prompt_prints_its_output_and_nothing_else_on_stdout(run: Run) -> None:
    plain = run("generate", "demo", "hello", *GREEDY)
    [result] = objects(run("generate", "demo", "hello", *GREEDY, "--json"))
    assert plain.out == result["outputs"][0]["text"] + "\n"
    assert re.fullmatch(
        r"1 prompt: \d+ prompt tokens, 0 reused \(0 %\), \d+ computed; 6 generated in \d+\.\d\d s\n"
        r"note: this model can chat; --chat puts a prompt into its format\n",
        plain.err,
    )


def test_quiet_is_quiet(run: Run) -> None:
    result = run("generate", "demo", "hello", *GREEDY, "--quiet")
    assert result.out
    assert result.err == ""


def test_json_has_ids_text_reason_and_cached_tokens(run: Run) -> None:
    [result] = objects(run("generate", "demo", "hello", *GREEDY, "--json", "--logprobs", "2"))
    assert result["prompt"] == "hello"
    assert result["num_cached_tokens"] == 0
    [output] = result["outputs"]
    assert output["finish_reason"] == "length"
    assert len(output["token_ids"]) == 6 == len(output["logprobs"])
    best = output["logprobs"][0][str(output["token_ids"][0])]
    assert best["rank"] == 1, "greedy takes the likeliest token"
    assert output["cumulative_logprob"] == pytest.approx(
        sum(step[str(t)]["logprob"] for step, t in zip(output["logprobs"], output["token_ids"], strict=True)), abs=1e-4
    )


def test_prompts_from_arguments_file_and_stdin_keep_their_order(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("second\n\nthird\n")
    results = objects(run("generate", "demo", "first", "--file", str(file), *GREEDY, "--json"))
    assert [(r["index"], r["prompt"]) for r in results] == [(0, "first"), (1, "second"), (2, "third")]
    assert [r["prompt"] for r in objects(run("generate", "demo", "-", *GREEDY, "--json", input="a\nb"))] == ["a\nb"]
    lines = run("generate", "demo", "--file", "-", *GREEDY, "--json", input="a\nb")
    assert [r["prompt"] for r in objects(lines)] == ["a", "b"]


def test_several_outputs_stand_below_their_prompt(run: Run) -> None:
    lines = run("generate", "demo", "x", "y", *GREEDY[2:], "--n", "2", "--seed", "1", "-q").out
    assert lines.startswith("> x\n[0] ")
    assert lines.count("[0] ") == lines.count("[1] ") == lines.count("> ") == 2


def test_the_flags_reach_the_model(run: Run) -> None:
    sampled = ("generate", "demo", "hello", "--json", "--max-tokens", "8", "--ignore-eos", "--temperature", "2")
    one, again, other = (objects(run(*sampled, "--seed", seed)) for seed in ("1", "1", "2"))
    assert one == again != other
    [beams] = objects(run("generate", "demo", "hello", "--json", "--beam-width", "3", "--n", "2", "--max-tokens", "4"))
    scores = [o["cumulative_logprob"] / len(o["token_ids"]) for o in beams["outputs"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    stop = objects(run(*sampled, "--seed", "1", "--stop-token-id", str(one[0]["outputs"][0]["token_ids"][2])))
    assert stop[0]["outputs"][0]["finish_reason"] == "stop"
    assert len(stop[0]["outputs"][0]["token_ids"]) <= 3


def test_a_common_beginning_is_computed_once(run: Run) -> None:
    beginning = "All of this is the same for each of the prompts, however often it comes. " * 4
    settings = (*GREEDY, "--json", "--block-size", "16", "--dtype", "float32")
    first, second = objects(run("generate", "demo", beginning + "One", beginning + "Two", *settings))
    assert first["num_cached_tokens"] == 0
    assert second["num_cached_tokens"] >= len(second["prompt_token_ids"]) - 2 * 16
    off = objects(run("generate", "demo", beginning + "One", beginning + "Two", *settings, "--no-prefix-caching"))
    assert [r["num_cached_tokens"] for r in off] == [0, 0]
    tokens = [[output["token_ids"] for output in r["outputs"]] for r in (first, second, *off)]
    assert tokens[:2] == tokens[2:], "reuse does not change the result"


def test_a_directory_is_a_model(run: Run, demo_dir: Path) -> None:
    by_name, by_path = (run("generate", model, "hello", *GREEDY, "-q").out for model in ("demo", str(demo_dir)))
    assert by_name == by_path


# ---- chat ----


def test_the_scripted_conversation_reuses_more_every_turn(run: Run) -> None:
    *turns, last = objects(run("chat", "--demo", "--json", "--max-tokens", "16", "--block-size", "16", "--seed", "1"))
    first, *rest, again = turns
    assert len(rest) >= 5
    assert first["cached_tokens"] == 0
    for before, turn in zip(turns, rest, strict=False):
        assert turn["cached_tokens"] >= (before["prompt_tokens"] + before["output_tokens"] - 2) // 16 * 16
    assert again["user"] == first["user"]
    assert again["cached_tokens"] == (first["prompt_tokens"] - 1) // 16 * 16, "a new conversation that begins alike"
    assert last["summary"]["prompt_tokens"] == sum(t["prompt_tokens"] for t in turns)
    assert last["summary"]["cached_tokens"] == sum(t["cached_tokens"] for t in turns)
    cache = last["cache"]
    assert cache["used"] == 0, "nothing is held between turns"
    assert cache["cached"] > 0
    assert cache["free"] + cache["cached"] == cache["num_blocks"]


def test_the_scripted_conversation_as_text(run: Run) -> None:
    out = run("chat", "--demo", "--max-tokens", "8").out
    lines = re.findall(
        r"^turn (\d+): [\d,]+ prompt tokens, [\d,]+ reused \(\d+ %\), [\d,]+ computed, \d+\.\d\d s to first token$",
        out,
        re.M,
    )
    assert lines == [str(n + 1) for n in range(len(lines))]
    assert len(lines) >= 4
    assert re.search(
        r"^\d turns: .* reused .*\ncache: [\d,]+ blocks, 0 used, [\d,]+ cached, [\d,]+ free\n\Z", out, re.M
    )


def test_turns_come_line_by_line_from_a_pipe(run: Run) -> None:
    result = run("chat", "--json", "-q", "--max-tokens", "4", input="one\n/undo\n\ntwo\n/quit\nthree\n")
    assert [t["user"] for t in objects(result)] == ["one", "two"]


def test_what_is_reused_is_what_was_drawn(run: Run) -> None:
    """The second prompt holds the first answer's very tokens, so all but the last open block of turn 1 is reused."""
    one, two = objects(
        run(
            "chat",
            "--json",
            "-q",
            "--max-tokens",
            "40",
            "--ignore-eos",
            "--block-size",
            "8",
            "--seed",
            "3",
            input="a\nb\n",
        )
    )
    in_cache = one["prompt_tokens"] + one["output_tokens"] - 1  # the K/V of the last token were never needed
    assert two["cached_tokens"] == in_cache // 8 * 8


def test_the_greeting_says_what_the_embedded_model_is(run: Run) -> None:
    from kvtrove import demo

    out = run("chat", input="/quit\n").out
    assert out.startswith(demo.greeting())
    assert "/help" in out


# ---- doctor ----


def test_doctor_reports_this_machine(shell: Run) -> None:
    [report] = objects(shell("kvtrove doctor --no-measure --json"))
    assert report["versions"]["kvtrove"] == kvtrove.__version__
    assert re.match(r"\d+\.\d+", report["versions"]["torch"])
    checks = report["checks"]
    assert checks["kernels"]["value"]["wrong"] == {}
    assert checks["kernels"]["value"]["chosen"] in checks["kernels"]["value"]["present"]
    threads = checks["threads"]["value"]
    assert threads["processors"] >= threads["usable"] >= threads["physical"] >= threads["kernels"] >= 1
    memory = checks["memory"]["value"]
    assert memory["total"] >= memory["allowed"] >= memory["available"] > 0
    assert len(checks["openmp"]["value"]) == 1, "torch's alone: the kernels bring none"
    assert (checks["openmp"]["state"], checks["spinning"]["value"]) == ("ok", "GOMP_SPINCOUNT=3000")
    assert all(check["meaning"] for check in checks.values())


def test_a_model_cannot_draw_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvtrove.cli.text import shown

    assert shown("a\x1b[31mb") == "a\x1b[31mb", "a file gets the bytes as they are"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert shown("a\x1b[31mb\r\x9bc\n\td\u2028é") == "a\ufffd[31mb\ufffd\ufffdc\n\td\u2028é"
