"""`kvtrove bench` over real sockets, against a fake server on loopback whose delays are known.

Sleeping never ends early, so a lower bound on a measured latency is certain. Upper bounds would depend on how busy
the machine is: exact figures are checked in virtual time (tests/unit/bench), and what must be fast here has seconds
to spare.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.pages import blocks, check_printed
from tests.unit.bench.fake_openai import Behaviour, fake_server

Run = Callable[..., Any]
PAGE = "docs/benchmarking.md"
SMALL = ("--input-tokens", "40", "--output-tokens", "6")


@dataclass(frozen=True)
class Fake:
    url: str
    behaviour: Behaviour


@pytest.fixture
def fake() -> Iterator[Fake]:
    """The fake server on a port of its own. Tests change its behaviour before they send anything."""
    behaviour = Behaviour()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # from here on connections queue, however late the server's thread starts
    server = uvicorn.Server(uvicorn.Config(fake_server(behaviour), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield Fake(f"http://127.0.0.1:{listening.getsockname()[1]}", behaviour)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
        listening.close()


def measured(result: Any) -> dict[str, Any]:
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def figure(found: dict[str, Any], name: str) -> float:
    value = found["runs"][-1]["figures"][name]["value"]
    assert value is not None, name
    return float(value)


def test_what_is_measured_is_what_the_server_does(run: Run, fake: Fake) -> None:
    fake.behaviour.ttft, fake.behaviour.gap = 0.3, 0.04
    found = measured(
        run("bench", "serve", "--url", fake.url, "--concurrency", "5", "--requests", "10", *SMALL, "--json", "-")
    )
    assert found["runs"][0]["counts"]["completed"] == 10
    assert 0.3 <= figure(found, "ttft_p50") < 3
    assert 0.04 <= figure(found, "tpot_p50") < 1
    assert 0.04 <= figure(found, "itl_mean") < 1
    assert figure(found, "e2e_p50") >= 0.3 + 5 * 0.04
    assert figure(found, "pause_max") >= 0.04
    assert figure(found, "input_rate") == pytest.approx(figure(found, "request_rate") * 40, rel=0.03)
    assert figure(found, "output_rate") == pytest.approx(figure(found, "request_rate") * 6)
    assert found["runs"][0]["token_sources"] == {"continuous": 10}


def test_goodput_tells_fast_from_slow(run: Run, fake: Fake, tmp_path: Path) -> None:
    """Half of the prompts wait 2.2 s, the limit is 2 s, the others do not wait at all; all of them at once."""
    fake.behaviour.delay = lambda prompt: 2.2 if "slow" in prompt else 0.0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": word, "output_tokens": 3}) + "\n" for word in ["fast", "slow"] * 6)
    )
    flags = ("--concurrency", "12", "--prompts", str(prompts), "--slo-ttft", "2s", "--slo-tpot", "2s", "--json", "-")
    found = measured(run("bench", "serve", "--url", fake.url, *flags))
    counts = found["runs"][0]["counts"]
    assert (counts["within"], counts["late"]) == (6, 6)
    assert figure(found, "slo_share") == 0.5
    assert figure(found, "goodput") == pytest.approx(6 / found["runs"][0]["seconds"])


def test_a_rate_is_kept_and_the_table_is_for_people(run: Run, fake: Fake) -> None:
    flags = ("--rate", "20", "--arrivals", "constant", "--requests", "20", "--warmup", "2", "--seed", "7", *SMALL)
    result = run("bench", "serve", "--url", fake.url, *flags, "--slo-ttft", "10s")
    assert result.code == 0, result.err
    assert f"tiny at {fake.url}/v1, chat" in result.out
    assert "20 arrivals/s (constant), seed 7" in result.out
    assert re.search(
        r"^18 requests in \S+ m?s: 18 completed, 0 failed, 0 abandoned; 2 more for warm-up", result.out, re.M
    )
    assert "100.0 % inside TTFT ≤ 10 s" in result.out
    assert result.err == ""


def test_conversations_find_their_past_in_the_cache(run: Run, fake: Fake) -> None:
    fake.behaviour.caches = True
    flags = ("--turns", "3", "--requests", "4", "--concurrency", "2", "--prefix-tokens", "64", "--json", "-")
    found = measured(run("bench", "serve", "--url", fake.url, *flags, *SMALL))
    shares = [row["cached_share"] for row in found["runs"][0]["turns"]]
    assert [row["requests"] for row in found["runs"][0]["turns"]] == [4, 4, 4]
    assert shares == sorted(shares)
    assert shares[0] < 0.6 < shares[2]


def test_completions_and_own_fields(run: Run, fake: Fake) -> None:
    flags = ("--endpoint", "completions", "--requests", "2", "--extra-body", '{"top_k": 5}', "--temperature", "0")
    found = measured(run("bench", "serve", "--url", fake.url, *flags, *SMALL, "--json", "-"))
    assert found["runs"][0]["counts"]["completed"] == 2
    assert all(isinstance(sent["prompt"], str) and sent["top_k"] == 5 for sent in fake.behaviour.requests)


def test_files_and_comparison(run: Run, fake: Fake, tmp_path: Path) -> None:
    """The second run is of a server that is half a second slower: the comparison says so, with its spread."""
    for name, ttft in (("fast", 0.0), ("slow", 0.5)):
        fake.behaviour.ttft = ttft
        files = ("--json", str(tmp_path / f"{name}.json"), "--html", str(tmp_path / f"{name}.html"))
        flags = ("--rate", "100", "--requests", "45", "--seed", "1", "--quiet", *SMALL)
        result = run("bench", "serve", "--url", fake.url, *flags, *files)
        assert (result.code, result.err) == (0, "")
        assert (tmp_path / f"{name}.html").read_text().startswith("<!doctype html>")
    compared = run("bench", "compare", str(tmp_path / "fast.json"), str(tmp_path / "slow.json"))
    assert compared.code == 0
    [line] = [line for line in compared.out.splitlines() if line.startswith("TTFT p50")]
    assert re.search(r"\+[\d.]+ % +± [\d.]+ % +unsure", line), line
    assert "not the same" not in compared.out


def test_a_sweep(run: Run, fake: Fake) -> None:
    flags = ("--rates", "20,10", "--requests", "5", "--slo-ttft", "20s", "--slo-share", "0.8", *SMALL)
    result = run("bench", "serve", "--url", fake.url, *flags)
    assert result.code == 0, result.err
    assert "20 arrivals/s is the highest rate that keeps 80 % of the requests inside TTFT ≤ 20 s" in result.out
    assert "every rate met the goal" in result.out


def test_failures_are_figures_not_errors(run: Run, fake: Fake) -> None:
    fake.behaviour.fail = lambda prompt: (429, "slow down") if len(fake.behaviour.requests) > 4 else None
    result = run("bench", "serve", "--url", fake.url, "--requests", "5", *SMALL)
    assert result.code == 0
    assert "2 completed, 3 failed" in result.out
    assert re.search(r"^http 429 +3 +slow down *$", result.out, re.M)


@pytest.mark.parametrize(
    ("behaviour", "flags", "message"),
    [
        ({"api_key": "right"}, (), "wants an API key (401): give --api-key or set OPENAI_API_KEY"),
        ({"api_key": "right"}, ("--api-key", "wrong"), "refuses the API key (401)"),
        ({"models": ("tiny", "big")}, ("--model", "huge"), "has no model 'huge'; it offers: tiny, big"),
        ({"streams": False}, (), "does not stream (content-type application/json)"),
        ({}, ("--rates", "1,x"), "write numbers with commas between, such as 1,2,4,8"),
        ({}, ("--rates", "1,2"), "give slo_ttft, slo_tpot or both"),
        ({}, ("--slo-ttft", "fast"), "slo_ttft: cannot read 'fast' as a duration; write for example 50ms, 1s or 2m"),
        ({}, ("--extra-body", "[1]"), "is no JSON object"),
        ({}, ("--json", "no/such/folder/a.json"), "there is no such folder; make it first"),
        ({}, ("--prompts", "missing.jsonl"), "prompts: cannot read missing.jsonl"),
        ({}, ("--trace", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_what_cannot_work_is_one_clear_line(
    behaviour: dict[str, Any],
    flags: tuple[str, ...],
    message: str,
    run: Run,
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name, value in behaviour.items():
        setattr(fake.behaviour, name, value)
    result = run("bench", "serve", "--url", fake.url, *flags)
    assert result.code == 2
    assert result.out == ""
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_server_that_is_not_there(run: Run) -> None:
    with socket.socket() as nobody:  # bound, but nobody listens
        nobody.bind(("127.0.0.1", 0))
        result = run("bench", "serve", "--url", f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert result.code == 2
    assert "cannot be reached" in result.err
    assert "is the server running, and is this its --url?" in result.err


def test_the_key_comes_from_the_environment_and_stays_secret(run: Run, fake: Fake) -> None:
    fake.behaviour.api_key = "sk-from-the-environment"
    env = {"OPENAI_API_KEY": "sk-from-the-environment"}
    result = run("bench", "serve", "--url", fake.url, "--requests", "1", *SMALL, "--json", "-", env=env)
    assert result.code == 0, result.err
    assert "sk-from" not in result.out + result.err
    assert "sk-from" not in run("bench", "serve", "--help", env=env).out


def test_ctrl_c_prints_what_was_measured(fake: Fake, environment: dict[str, str], tmp_path: Path) -> None:
    """A process of its own, interrupted when six requests have begun: at least one is done, the last is under way."""
    fake.behaviour.gap = 0.05
    command = [sys.executable, "-m", "kvtrove", "bench", "serve", "--url", fake.url, "--requests", "1000"]
    command += [*SMALL, "--json", str(tmp_path / "part.json")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(fake.behaviour.requests) < 2 + 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopped by hand" in out
    assert "TTFT" in out
    found = json.loads((tmp_path / "part.json").read_text())
    counts = found["runs"][0]["counts"]
    assert found["interrupted"] is True
    assert 4 <= counts["completed"] < 1000
    assert counts["unfinished"] <= 1
    assert "Traceback" not in err


# ---- the page about it ----


def test_the_examples_of_the_page_run(fake: Fake, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every console block of docs/benchmarking.md, in order, in one folder; lines that it shows must be printed."""
    monkeypatch.chdir(tmp_path)
    fake.behaviour.caches = True
    for name, block in zip(("prompts.jsonl", "trace.jsonl"), blocks(PAGE, "json"), strict=True):
        Path(name).write_text(block.text)
    ran = 0
    for block in blocks(PAGE, "console"):
        for command, expected in block.commands:
            program, *words = shlex.split(command.replace("http://127.0.0.1:8000", fake.url))
            assert program == "kvtrove"
            result = run(*words)
            assert result.code == 0, result.err
            check_printed(expected, result.out.replace(fake.url, "http://127.0.0.1:8000").splitlines())
            ran += 1
    assert ran >= 6
