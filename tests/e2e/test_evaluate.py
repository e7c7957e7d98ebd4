"""`kvtrove eval` as users meet it: the page on it, files and stdout, Ctrl-C and going on."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pages import blocks, check_printed

Run = Callable[..., Any]
PAGE = "docs/evaluation.md"
SMALL = (
    "eval", "--text-tokens", "64", "--context", "64", "--lengths", "256", "--depths", "0.5", "--samples", "1",
    "--rounds", "1", "--answer-tokens", "2",
)  # fmt: skip


def test_the_page_is_true(run: Run, demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").symlink_to(demo_dir)
    monkeypatch.chdir(tmp_path)
    [needle] = blocks(PAGE, "toml")
    (tmp_path / "needle.toml").write_text(needle.text, encoding="utf-8")
    found = blocks(PAGE, "console")
    assert len(found) == 4
    for block in found:
        for command, expected in block.commands:
            result = run(*shlex.split(command)[1:])
            assert result.code == 0, result.err
            check_printed(expected, result.out.splitlines())
    assert {path.name for path in tmp_path.iterdir()} >= {"result.json", "result.state.json", "report.html"}
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_json_on_stdout_is_all_there_and_agrees_with_itself(run: Run) -> None:
    result = run(*SMALL, "--cache", "bf16", "--json", "-", "--quiet")
    found = json.loads(result.out)
    assert [one["name"] for one in found["configurations"]] == ["exact", "bf16"]
    assert found["cells"] == {"done": 6, "total": 6}
    exact = found["configurations"][0]
    assert (exact["fidelity"]["kl_mean"], exact["fidelity"]["top1"]) == (0, 1)
    assert found["settings"]["lengths"] == [256]


def test_ctrl_c_prints_what_is_done_and_the_same_command_goes_on(
    environment: dict[str, str], run: Run, tmp_path: Path
) -> None:
    args = [*SMALL, "--cache", "window=16", "--rounds", "1000", "--state", str(tmp_path / "state.json")]
    command = [sys.executable, "-m", "kvtrove", *args]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while "speed 2" not in (tmp_path / "state.json").read_text() if (tmp_path / "state.json").exists() else True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "exact" in out
    assert "Traceback" not in err
    assert re.search(r"\d+ of 2004 cells are done and kept in .*state\.json; the same command goes on", err)
    before = json.loads((tmp_path / "state.json").read_text())["runs"]
    args[args.index("1000")] = "3"
    result = run(*args, "--json", str(tmp_path / "result.json"))
    assert result.code == 0, result.err
    [(fingerprint, cells)] = json.loads((tmp_path / "state.json").read_text())["runs"].items()
    assert before[fingerprint].items() <= cells.items()


def test_without_a_state_it_says_that_nothing_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvtrove.evaluate.speed import SpeedRound

    def interrupted(self: SpeedRound, engines: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(SpeedRound, "run", interrupted)
    result = run(*SMALL, "--parts", "text,speed", "--cache", "bf16")
    assert result.code == 130
    assert "2 of 4 cells are done and not kept; with --state FILE they would be" in result.err
    assert "note: stopped by hand after 2 of 4 cells" in result.out
