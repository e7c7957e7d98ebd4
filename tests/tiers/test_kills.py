"""Real processes that publish to a disk tier and are killed with SIGKILL. docs/tiers.md reports 200 of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "macro" / "kill_disk_tier.py"


def test_killed_processes_lose_nothing_that_was_ok() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "6", "--most-seconds", "0.1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["kills"] == 6
    assert figures["rows_ok"] > 0
    assert figures["lost"] == figures["wrong"] == 0
