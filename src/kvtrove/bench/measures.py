"""From records to figures: pure functions. The definitions are in docs/benchmarking.md."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvtrove.bench.record import OK, TIMEOUT, UNFINISHED, Floats, Record
from kvtrove.bench.settings import Slo

PERCENTILES = (50, 90, 95, 99)
LATENCIES = {  # name -> what people call it
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
    "pause": "longest pause",
    "lag": "client's lag",
}
STATISTICS = ("mean", *(f"p{q}" for q in PERCENTILES), "max")
RATES = {  # name -> label; all per second, more is better
    "request_rate": "requests",
    "output_rate": "output tokens",
    "input_rate": "input tokens",
    "goodput": "goodput",
    "session_rate": "sessions",
    "session_goodput": "sessions inside the SLO",
}
SHARES = {  # name -> label; 0..1, more is better
    "slo_share": "inside the SLO",
    "slo_ttft_share": "inside the TTFT limit",
    "slo_tpot_share": "inside the TPOT limit",
    "session_slo_share": "sessions inside the SLO",
    "cached_share": "prompt tokens from the cache",
}

Figures = dict[str, float | None]


def within(record: Record, slo: Slo) -> bool:
    """Answered inside both limits. Without a second token there is no TPOT that could miss its own."""
    return record.ok and within_ttft(record, slo) and within_tpot(record, slo)


def within_ttft(record: Record, slo: Slo) -> bool:
    return record.ok and (slo.ttft is None or (record.ttft is not None and record.ttft <= slo.ttft))


def within_tpot(record: Record, slo: Slo) -> bool:
    return record.ok and (slo.tpot is None or record.tpot is None or record.tpot <= slo.tpot)


@dataclass(frozen=True)
class Counts:
    """How requests ended: sent = completed + failed + abandoned + unfinished. late: completed, but outside of the SLO.

    sessions: conversations that began; sessions_completed: those with every turn answered; sessions_within: in the SLO.
    """

    sent: int
    completed: int
    failed: int
    abandoned: int
    unfinished: int
    within: int
    late: int
    sessions: int
    sessions_completed: int
    sessions_within: int


def count(records: Sequence[Record], slo: Slo) -> Counts:
    ended = Counter(record.status for record in records)
    completed, abandoned, unfinished = ended[OK], ended[TIMEOUT], ended[UNFINISHED]
    good = sum(within(record, slo) for record in records)
    sessions = by_conversation(records)
    whole = [s for s in sessions if len(s) == s[0].num_turns and all(record.ok for record in s)]
    return Counts(
        sent=len(records),
        completed=completed,
        failed=len(records) - completed - abandoned - unfinished,
        abandoned=abandoned,
        unfinished=unfinished,
        within=good,
        late=completed - good,
        sessions=len(sessions),
        sessions_completed=len(whole),
        sessions_within=sum(all(within(record, slo) for record in s) for s in whole),
    )


def by_conversation(records: Sequence[Record]) -> list[list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        found[record.conversation].append(record)
    return list(found.values())


def span(records: Sequence[Record]) -> float:
    """Seconds from the first arrival to the end of the last request."""
    if not records:
        return 0.0
    return max(record.ended for record in records) - min(record.arrival for record in records)


def figures(records: Sequence[Record], slo: Slo, seconds: float) -> Figures:
    """Every measure by name; None where there is nothing to measure. seconds: what rates are divided by."""
    found = _latencies(records)
    counts = count(records, slo)
    ok = [record for record in records if record.ok]
    found["request_rate"] = _per(counts.completed, seconds)
    found["output_rate"] = _per(sum(record.output_tokens for record in ok), seconds)
    known = [record.prompt_tokens for record in ok if record.prompt_tokens is not None]
    found["input_rate"] = _per(sum(known), seconds) if known else None
    found["session_rate"] = _per(counts.sessions_completed, seconds)
    found["cached_share"] = cached_share(ok)
    if slo:
        judged = [record for record in records if record.status != UNFINISHED]
        found["goodput"] = _per(counts.within, seconds)
        found["slo_share"] = _per(counts.within, len(judged))
        found["slo_ttft_share"] = _per(sum(within_ttft(record, slo) for record in judged), len(judged))
        found["slo_tpot_share"] = _per(sum(within_tpot(record, slo) for record in judged), len(judged))
        found["session_goodput"] = _per(counts.sessions_within, seconds)
        ended = sum(all(record.status != UNFINISHED for record in s) for s in by_conversation(records))
        found["session_slo_share"] = _per(counts.sessions_within, ended)
    return found


def _per(amount: float, whole: float) -> float | None:
    return amount / whole if whole else None


def _latencies(records: Sequence[Record]) -> Figures:
    """Percentiles of each latency. TTFT, TPOT, E2E and the longest pause are per request, ITL is per token."""
    ok = [record for record in records if record.ok]
    found: Figures = {}
    for name in LATENCIES:
        if name == "itl":
            values = np.concatenate([record.gaps for record in ok]) if ok else np.empty(0)
        else:
            of_each = [getattr(record, name) for record in (records if name == "lag" else ok)]
            values = np.array([value for value in of_each if value is not None])
        found |= {f"{name}_{statistic}": value for statistic, value in _statistics(values).items()}
    return found


def _statistics(values: Floats) -> Figures:
    if not len(values):
        return dict.fromkeys(STATISTICS)
    quantiles = np.percentile(values, PERCENTILES)  # linear between the two nearest values
    return dict(zip(STATISTICS, map(float, (values.mean(), *quantiles, values.max())), strict=True))


def cached_share(records: Sequence[Record]) -> float | None:
    """Cached / all prompt tokens, over the requests whose server reported both."""
    told = [(r.cached_tokens, r.prompt_tokens) for r in records if r.cached_tokens is not None and r.prompt_tokens]
    return sum(cached for cached, _ in told) / sum(whole for _, whole in told) if told else None


@dataclass(frozen=True)
class TurnRow:
    """One turn number (from 1) over all conversations."""

    turn: int
    requests: int
    prompt_tokens: float | None
    cached_share: float | None
    ttft_p50: float | None


def by_turn(records: Sequence[Record]) -> list[TurnRow]:
    rows = []
    for turn in sorted({record.turn for record in records if record.ok}):
        ok = [record for record in records if record.ok and record.turn == turn]
        known = [record.prompt_tokens for record in ok if record.prompt_tokens is not None]
        ttft = [record.ttft for record in ok if record.ttft is not None]
        mean = sum(known) / len(known) if known else None
        rows.append(TurnRow(turn + 1, len(ok), mean, cached_share(ok), float(np.median(ttft)) if ttft else None))
    return rows


@dataclass(frozen=True)
class ErrorRow:
    """A way in which requests failed. message: of the first one."""

    status: str
    requests: int
    message: str


def errors(records: Sequence[Record]) -> list[ErrorRow]:
    """Most frequent first."""
    bad = [record for record in records if record.status not in (OK, UNFINISHED)]
    first = {record.status: record.error for record in reversed(bad)}
    return [ErrorRow(status, n, first[status]) for status, n in Counter(r.status for r in bad).most_common()]
