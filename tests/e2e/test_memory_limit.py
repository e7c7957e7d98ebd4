"""Memory limits are hard: what a process holds with a full cache, against what its ledger said at start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "macro" / "plan_vs_reality.py"
SETTING = "small:2560x3:float32"
"""Some 100 MB of weights and 360 MB of cache: enough that three percent of the process mean something."""


def test_a_full_cache_and_the_largest_step_stay_within_three_percent_of_the_plan() -> None:
    command = [sys.executable, str(SCRIPT), "--settings", SETTING, "--tokens", "256", "--requests", "--json", "-"]
    environment = {**os.environ, "KVTROVE_CHECK": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["settings"]
    assert found["kv"] >= 360 * 2**20
    assert found["requests_peak"] > found["process"] + found["weights"] + found["kv"], "the cache was not full"
    assert found["requests_peak"] <= 1.03 * found["corrected"]
    assert abs(found["error_corrected"]) <= 0.03
