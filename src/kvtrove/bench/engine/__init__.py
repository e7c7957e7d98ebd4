"""Measures an engine in this process beside the limits of its machine."""
