"""The conversations of a run: where they come from, and how many of them there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random

from kvtrove.bench.replay import replay
from kvtrove.bench.settings import Load, Workload
from kvtrove.bench.workload import Conversation, own_prompts, synthetic

DEFAULT_REQUESTS = 100


@dataclass(frozen=True)
class Supply:
    """requests: how many there will be, None when time decides."""

    conversations: Iterable[Conversation]
    requests: int | None


def supply(workload: Workload, load: Load, random: Random) -> Supply:
    """What the settings ask for. ConfigError when a file cannot be read."""
    if workload.trace is not None:
        conversations = replay(workload, load.requests)
        return Supply(conversations, _requests(conversations, load))
    if workload.prompts is not None:
        own = own_prompts(workload.prompts, workload, random)
        if load.requests is None and load.duration is not None:
            return Supply(cycle(own), None)
        conversations = own if load.requests is None else list(islice(cycle(own), load.requests))
        return Supply(conversations, _requests(conversations, load))
    if load.requests is None and load.duration is not None:
        return Supply(synthetic(workload, random), None)
    conversations = list(islice(synthetic(workload, random), load.requests or DEFAULT_REQUESTS))
    return Supply(conversations, _requests(conversations, load))


def _requests(conversations: list[Conversation], load: Load) -> int | None:
    return None if load.duration is not None else sum(len(c.turns) for c in conversations)
