"""Traces of Mooncake (FAST'25, arXiv 2407.00079): an hour of a chat service, prefixes as ids of 512-token blocks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from kvtrove.plan.traces.fields import Line
from kvtrove.plan.traces.request import Trace, TraceRequest

BLOCK = 512


def recognises(line: Line) -> bool:
    return line.text.startswith("{") and "input_length" in line.json().values


def read(name: str, first: Line, rest: Iterable[Line]) -> Trace:
    """timestamp is in milliseconds. The last id may stand for a block that the prompt fills only in part."""
    requests = [_request(line) for line in chain((first,), rest)]
    return Trace(name, BLOCK, sorted(requests, key=lambda r: r.arrival))


def _request(line: Line) -> TraceRequest:
    fields = line.json()
    prompt, ids = fields.count("input_length", 1), fields.ids("hash_ids")
    if len(ids) > -(-prompt // BLOCK):
        raise line.error(
            f"'hash_ids' has {len(ids)} entries, {prompt} tokens have at most {-(-prompt // BLOCK)} blocks of {BLOCK}"
        )
    return TraceRequest(fields.seconds("timestamp") / 1000, prompt, fields.count("output_length"), ids)
