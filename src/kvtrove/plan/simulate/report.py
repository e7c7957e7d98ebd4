"""The figures of one or more runs of a trace, as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from kvtrove.plan.traces.request import Trace, summarise

CLIFF = 0.1
"""A step of at least so much hit ratio between neighbouring sizes is a cliff."""


def simulation_report(
    trace: Trace, runs: Sequence[dict[str, Any]], assumed: str, slo: dict[str, float]
) -> dict[str, Any]:
    """The first run's figures, and all of them under `runs`; `cliffs`: where a little more cache gains most.

    assumed: whose steps cost what the simulated ones do. slo: "ttft" and "tpot", those that have a limit, in seconds.
    """
    summary = summarise(trace)
    return {
        "trace": trace.name,
        "mean_prompt": summary.mean_prompt,
        "mean_output": summary.mean_output,
        "rate": summary.rate,
        "assumed": assumed,
        "slo": slo,
        **runs[0],
        "runs": list(runs),
        "cliffs": cliffs(runs),
    }


def cliffs(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring sizes between which the hit ratio rises by `CLIFF` or more, per user where there are several."""
    limited = sorted((run for run in runs if run["kv_tokens"] is not None), key=lambda run: run["kv_tokens"])
    return [
        {
            "from_tokens_per_user": low["kv_tokens_per_user"],
            "to_tokens_per_user": high["kv_tokens_per_user"],
            "from_hit_ratio": low["token_hit_ratio"],
            "to_hit_ratio": high["token_hit_ratio"],
        }
        for low, high in pairwise(limited)
        if high["token_hit_ratio"] - low["token_hit_ratio"] >= CLIFF
    ]
