"""The soak test, shortened: what ten minutes prove is in docs/reliability.md, this keeps it true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "macro" / "soak.py"


def test_clients_that_hang_up_or_send_garbage_leak_nothing_and_break_nothing(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, SCRIPT, "--seconds", "3", "--clients", "24", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KVTROVE_CHECK": "1"})
    assert out.exists(), done.stderr
    seen = json.loads(out.read_text())
    assert seen["server_errors"] == 0, seen
    assert seen["leaked_blocks"] == 0, seen
    assert seen["statuses"]["200"] > 0
    assert seen["statuses"]["hung up"] > 0
    assert seen["statuses"]["400"] > 0
    assert done.returncode == 0
