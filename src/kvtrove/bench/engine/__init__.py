"""Measures an engine in this process beside the limits of its machine."""

FORMAT = "kvtrove-bench-engine/1"
"""Of the JSON of all commands here. This module imports nothing, so that reading results needs no torch."""
