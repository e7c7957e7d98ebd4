"""A recorded trace as conversations. Traces hold no text: it is made so that equal block ids give equal text."""

from __future__ import annotations

from pathlib import Path

from kvtrove.bench.settings import Workload
from kvtrove.bench.workload import Blocks, Conversation, Turn
from kvtrove.plan.traces import Trace, TraceRequest, read_trace


def replay(workload: Workload, limit: int | None) -> list[Conversation]:
    """The first `limit` conversations of the trace: its sessions, or its requests where it has none.

    Turns of a session are whole prompts of their own, in their recorded order. Raises TraceError (a ConfigError).
    """
    trace = read_trace(Path(workload.trace or ""))
    sessions: dict[object, list[tuple[int, TraceRequest]]] = {}
    for number, request in enumerate(trace.requests):
        name = number if request.session is None else request.session
        if name in sessions or limit is None or len(sessions) < limit:
            sessions.setdefault(name, []).append((number, request))
    return [_conversation(trace, requests, workload) for requests in sessions.values()]


def _conversation(trace: Trace, requests: list[tuple[int, TraceRequest]], workload: Workload) -> Conversation:
    """Time runs `time_scale` times as fast, thinking included."""
    turns = tuple(_turn(trace, number, request, workload) for number, request in requests)
    _, first = requests[0]
    return Conversation(turns, remembers=False, arrival=first.arrival / workload.time_scale)


def _turn(trace: Trace, number: int, request: TraceRequest, workload: Workload) -> Turn:
    prompt = min(request.prompt_tokens, workload.max_input_tokens or request.prompt_tokens)
    answer = min(request.output_tokens, workload.max_output_tokens or request.output_tokens)
    content = Blocks(request.blocks, trace.block_size, prompt, number)
    return Turn(content, max(1, answer), request.think_time / workload.time_scale)
