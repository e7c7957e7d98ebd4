"""The simulator promises what a real server does: the same trace finds the same tokens in the cache of both."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "macro" / "simulator_vs_server.py"
SMALL = 5120  # tokens of a cache that has to evict, so that hits depend on who leaves first


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KVTROVE_CHECK": "0"}
    command = [sys.executable, str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_server_hits_what_was_simulated_request_by_request() -> None:
    done = run("--hits-only", "--requests", "30", "--kv-tokens", str(SMALL), "--json", "-")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["requests"] == 30
    assert found["evictions"] > 0, "the cache was never full"
    assert 0 < found["measured_hit_ratio"] < found["ideal_hit_ratio"]
    assert found["measured_hit_ratio"] == found["simulated_hit_ratio"]
    assert found["different"] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--kv-tokens", "512"), "--kv-tokens 512 cannot hold the longest request; 2048 works"),
        (("--load", "1.5"), "--load between 0 and 1"),
    ],
)
def test_what_cannot_be_compared(
    flags: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
