"""Defaults of every test run, set before anything of the package is imported."""

from __future__ import annotations

import os
import signal
import tempfile

from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts tests in the background ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("KVTROVE_CHECK", "2")  # all invariants, every step
os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in one order, and no fight for cores between test processes
_HOME = tempfile.TemporaryDirectory(prefix="kvtrove-home-")
os.environ.setdefault("KVTROVE_HOME", _HOME.name)  # what commands keep for later is not the user's

# `quick` is the default and draws the same examples every time; `--hypothesis-profile=thorough` looks for new ones.
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=50)
settings.register_profile(
    "thorough", deadline=None, max_examples=2000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("quick")
