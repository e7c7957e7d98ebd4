"""Compiles grammars where a crash hurts nobody: the process behind `guidance.Grammars`. Runs as a module of its own.

llguidance parses grammars by recursion in native code: one of a few thousand nested rules ends the process, a regular
expression of a few bytes can ask for gigabytes. A grammar is tried here first, on half the stack and with bounded time
and memory; the server compiles what was proven to compile.
"""

from __future__ import annotations

import json
import random
import re
import resource
import threading
import time
from collections.abc import Callable
from typing import Any

import llguidance

from kvtrove.server.helper import serve

MEMORY = 768 * 2**20  # bytes that a grammar may take
STEP_SECONDS = 0.25  # CPU time of one token: it is taken from everybody's time between tokens
WALKS, WALK_TOKENS = 3, 24  # outputs that are tried, and their length
_DEFAULT_STACK = 8 * 2**20


def limits() -> llguidance.LLParserLimits:
    """llguidance's own limits, where ours differ: rows for the widest choices that fit into `max_schema_bytes`,
    a quarter of its states, of which each takes 1 to 2 kB.
    """
    return llguidance.LLParserLimits(
        max_items_in_row=20_000, step_max_items=200_000, max_lexer_states=60_000, verbose_errors=False
    )


def stack_size() -> int:
    """Bytes of stack that a thread of this process gets."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return _DEFAULT_STACK if soft == resource.RLIM_INFINITY else soft


def start(setup: bytes) -> Callable[[bytes], bytes]:
    facts = json.loads(setup)
    tokenizer = llguidance.LLTokenizer(facts["tokenizer"], n_vocab=facts["vocab_size"], eos_token=facts["eos"] or None)
    threading.stack_size(facts["stack_size"] // 2 // 4096 * 4096)

    def handle(source: bytes) -> bytes:
        answer: dict[str, Any] = {"problem": "it could not be compiled"}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def work() -> None:
            answer["problem"] = problem_of(tokenizer, source.decode())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        answer["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        return json.dumps(answer).encode()

    return handle


def problem_of(tokenizer: llguidance.LLTokenizer, source: str) -> str:
    """Why this grammar cannot be served, "" when it can: compile it, and write a few outputs."""
    matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits())
    for seed in range(WALKS):
        walker = matcher.deep_copy()
        if problem := _walk(walker, random.Random(seed)):
            return problem
    return ""


def _walk(matcher: llguidance.LLMatcher, rng: random.Random) -> str:
    for _ in range(WALK_TOKENS):
        began = time.thread_time()
        mask = b"" if matcher.is_error() else matcher.compute_bitmask()
        if not matcher.is_error() and not matcher.is_stopped():
            matcher.consume_token(_any_token(mask, rng))
        if matcher.is_error():
            return matcher.get_error()
        if time.thread_time() - began > STEP_SECONDS:
            return "it is too complex: one token takes so long that it would hold up other requests"
        if matcher.is_stopped():
            break
    return ""


def _any_token(mask: bytes, rng: random.Random) -> int:
    """One of the tokens whose bits are set in `mask`, which has some."""
    start = rng.randrange(len(mask))
    found = _NOT_ZERO.search(mask, start) or _NOT_ZERO.search(mask)
    assert found is not None, "a mask is never empty"
    byte = mask[found.start()]
    return 8 * found.start() + rng.choice([bit for bit in range(8) if byte >> bit & 1])


_NOT_ZERO = re.compile(rb"[^\0]")

if __name__ == "__main__":
    serve(start, MEMORY)
