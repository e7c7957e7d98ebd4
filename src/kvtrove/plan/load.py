"""Load formulas: how many requests per second a plan sustains, and how long they wait.

    request | prompt P computed in T_p | output O, one token per TPOT |
    KV held   0 ......... rises to P     P, P + 1, ... P + O             A = P (T_p + O TPOT) + O^2 TPOT / 2

A is in token-seconds. In a steady state of `rate` requests per second, Little's law gives rate x A tokens of K/V held
and rate x O x TPOT sequences decoding; TPOT itself grows with that number, so it is a fixed point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvtrove.plan.cost import CostModel, StepWork

HEADROOM = 0.85
"""Share of the K/V capacity that a steady load may fill: the rest absorbs bursts without preemption."""
SEARCH_STEPS = 60


@dataclass(frozen=True)
class Workload:
    """Tokens per request. hit_ratio: share of the prompt that the prefix cache serves."""

    prompt: float
    output: float
    hit_ratio: float = 0.0

    @property
    def computed(self) -> float:
        return self.prompt * (1 - self.hit_ratio)


@dataclass(frozen=True)
class Service:
    """What serves it. kv_tokens: capacity of the cache. max_users: sequences of a step. chunk: token budget."""

    cost: CostModel
    kv_tokens: int
    max_users: int
    chunk: int = 2048


@dataclass(frozen=True)
class LoadEstimate:
    """A steady state. decoding: sequences in the decode batch. kv_tokens: held on average. Times in seconds.

    bottleneck: what the rate exceeds ("prefill", "decode batch", "KV cache"), None when it is sustained.
    """

    rate: float
    ttft: float
    tpot: float
    decoding: float
    kv_tokens: float
    prefill_share: float
    bottleneck: str | None = None

    def meets(self, ttft: float | None, tpot: float | None) -> bool:
        """Whether it is sustained within these limits."""
        late = (ttft is not None and self.ttft > ttft) or (tpot is not None and self.tpot > tpot)
        return self.bottleneck is None and not late


def token_seconds(workload: Workload, prefill: float, tpot: float) -> float:
    """K/V that one request holds, in tokens x seconds: rising over the prefill is counted as held from its start."""
    output_time = workload.output * tpot
    return workload.prompt * (prefill + output_time) + output_time * workload.output / 2


def prefill_seconds(workload: Workload, service: Service, beside: float = 0.0) -> float:
    """What one prompt, in chunks of the token budget, adds to steps that decode `beside` sequences.

    beside 0: its time alone. A step's fixed part, and the weights that it reads, are shared by all who are in it.
    """
    decodes = _decodes(workload, beside) if beside else StepWork(0)
    shared = service.cost.seconds(decodes)
    seconds, done = 0.0, workload.prompt - workload.computed
    while done < workload.prompt:
        chunk = min(service.chunk, workload.prompt - done)
        pairs = round(chunk * (done + chunk / 2))
        joint = StepWork(decodes.tokens + round(chunk), decodes.cached_tokens, pairs, decodes.sequences + 1, 1)
        seconds += service.cost.seconds(joint) - shared
        done += chunk
    return seconds


def decode_seconds(workload: Workload, service: Service, batch: float) -> float:
    """Time of a step that decodes `batch` sequences, half way through their outputs on average."""
    return service.cost.seconds(_decodes(workload, batch))


def _decodes(workload: Workload, batch: float) -> StepWork:
    size = max(1.0, batch)
    context = workload.prompt + workload.output / 2
    return StepWork(round(size), round(size * context), 0, round(size))


def estimate(workload: Workload, service: Service, rate: float) -> LoadEstimate:
    """The steady state at `rate` requests per second.

    Prompts and decodes share the machine: what prefills add to steps, rate x T_p of each second, is missing to decode,
    and each slows the other by that much. A request finds the others' batch where it arrives and decodes with them: one
    sequence more than there are on average, as long as there are places (mean value analysis).
    """

    alone = prefill_seconds(workload, service)

    def prefill_share(batch: float) -> float:
        """Of each second. A batch below one is the share of time in which there is a decode beside the prompt."""
        accompanied = min(1.0, batch)
        return rate * ((1 - accompanied) * alone + accompanied * prefill_seconds(workload, service, batch))

    def seen(batch: float) -> float:
        """Seconds per token of a request beside `batch` sequences on average."""
        left = max(1e-9, 1 - prefill_share(batch))
        return decode_seconds(workload, service, min(batch + 1, service.max_users)) / left

    def overloaded(batch: float) -> bool:
        """Whether `batch` sequences decode more tokens per second than arrive: then the batch shrinks."""
        return batch >= rate * workload.output * seen(batch)

    if (share := prefill_share(service.max_users)) >= 1:
        return LoadEstimate(rate, float("inf"), float("inf"), 0.0, 0.0, share, "prefill")
    batch = _first(overloaded, float(service.max_users))
    share = min(prefill_share(batch), 1 - 1e-9)
    tpot = seen(batch)
    waiting = alone / (1 - share)
    held = rate * token_seconds(workload, waiting, tpot)
    full = batch >= service.max_users and not overloaded(service.max_users)
    bottleneck = "decode batch" if full else "KV cache" if held > HEADROOM * service.kv_tokens else None
    return LoadEstimate(rate, waiting + tpot, tpot, batch, held, share, bottleneck)


def max_rate(
    workload: Workload, service: Service, ttft: float | None = None, tpot: float | None = None
) -> LoadEstimate:
    """The largest rate that is sustained, within limits of TTFT and TPOT in seconds when they are given.

    rate 0 when a single request misses them already.
    """
    alone = estimate(workload, service, 1e-9)
    if not alone.meets(ttft, tpot):
        return LoadEstimate(0.0, alone.ttft, alone.tpot, 0.0, 0.0, 0.0, alone.bottleneck)
    low, high = 1e-9, 1.0
    while estimate(workload, service, high).meets(ttft, tpot) and high < 1e9:
        low, high = high, 2 * high
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if estimate(workload, service, middle).meets(ttft, tpot) else (low, middle)
    return estimate(workload, service, low)


def _first(holds: Callable[[float], bool], most: float) -> float:
    """Smallest x of [0, most] from which on holds(x); `most` when there is none."""
    low, high = 0.0, most
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
