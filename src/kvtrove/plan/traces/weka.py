"""Sessions of coding agents recorded by WEKA's kv-cache-tester: long prompts that grow turn by turn."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import chain

from kvtrove.plan.traces.fields import Fields, Line, TraceError
from kvtrove.plan.traces.request import Trace, TraceRequest


def recognises(line: Line) -> bool:
    return line.text.startswith("{") and "requests" in line.json().values


def read(name: str, first: Line, rest: Iterable[Line]) -> Trace:
    """Ids are local to a session, so they are numbered anew over the whole trace. Sub-agents are further requests."""
    requests: list[TraceRequest] = []
    numbers: dict[tuple[str, int], int] = {}
    block_size = 0
    for line in chain((first,), rest):
        session = line.json()
        size = session.count("block_size", 1)
        if block_size not in (0, size):
            raise session.error("block_size", f"{block_size} as in the lines before")
        block_size = size
        key = f"{session.values.get('id', line.number)}"
        requests += [_request(fields, key, numbers, size) for fields in _flattened(session, 0.0)]
    return Trace(name, block_size, sorted(requests, key=lambda r: r.arrival))


def _flattened(session: Fields, start: float) -> list[Fields]:
    """Requests of a session in order of time, those of sub-agents (with times of their own) included."""
    found: list[tuple[float, Fields]] = []
    for entry in session.objects("requests"):
        at = start + entry.seconds("t")
        if "requests" in entry.values:
            found += [(inner.values["t"], inner) for inner in _flattened(entry, at)]
        if "in" in entry.values:
            found.append((at, Fields(entry.line, {**entry.values, "t": at}, entry.where)))
    return [fields for _, fields in sorted(found, key=lambda item: item[0])]


def _request(fields: Fields, session: str, numbers: dict[tuple[str, int], int], block_size: int) -> TraceRequest:
    prompt, local = fields.count("in", 1), fields.ids("hash_ids")
    if len(local) > -(-prompt // block_size):
        raise _too_many(fields, len(local), prompt, block_size)
    ids = array("i", (numbers.setdefault((session, i), len(numbers)) for i in local))
    return TraceRequest(
        fields.seconds("t"), prompt, fields.count("out"), ids, session, fields.seconds("think_time", 0.0)
    )


def _too_many(fields: Fields, given: int, prompt: int, size: int) -> TraceError:
    most = -(-prompt // size)
    return fields.line.error(
        f"'{fields.where}hash_ids' has {given} entries, {prompt} tokens have at most {most} blocks of {size}"
    )
