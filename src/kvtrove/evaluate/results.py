"""The figures of each configuration, and the JSON of an evaluation. Format in docs/evaluation.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kvtrove.evaluate.evaluation import Evaluation
from kvtrove.evaluate.store import Value
from kvtrove.prices import Price

FORMAT = "kvtrove-eval/1"
TOLD = 0.5
"""Share of facts that the exact cache must recall for the recall of others to mean something."""

Place = tuple[int, float]
"""Length in tokens, depth 0 to 1."""


@dataclass(frozen=True)
class Fidelity:
    """Over all predictions of the text. kl_*: nats against the exact cache. top1: share of equal likeliest tokens."""

    predictions: int
    kl_mean: float
    kl_median: float
    kl_p99: float
    top1: float
    perplexity: float


@dataclass(frozen=True)
class Row:
    """One configuration; None and missing places were not measured. recall: share of right answers.

    prefill, decode: tokens per second, medians. weight_bytes: of all weights. turns: share of facts that are found
    one turn after the other.
    """

    name: str
    bytes_per_token: float
    fidelity: Fidelity | None
    recall: dict[Place, float]
    answers: dict[Place, list[str]]
    prefill: float | None
    decode: float | None
    weight_bytes: int | None = None
    turns: float | None = None

    @property
    def mean_recall(self) -> float | None:
        return sum(self.recall.values()) / len(self.recall) if self.recall else None

    @property
    def lost(self) -> float | None:
        """Share of facts that were not found, asked alone and one turn after the other."""
        found = [share for share in (self.mean_recall, self.turns) if share is not None]
        return 1 - sum(found) / len(found) if found else None

    def recall_at(self, length: int) -> float | None:
        """Over all depths that were measured."""
        found = [share for (tokens, _), share in self.recall.items() if tokens == length]
        return sum(found) / len(found) if found else None


def rows(evaluation: Evaluation) -> list[Row]:
    """In the order of the configurations, the exact cache first."""
    nbytes, weights = evaluation.bytes_per_token, evaluation.weight_bytes
    return [_row(name, nbytes[name], weights.get(name), kinds) for name, kinds in evaluation.results.items()]


def _row(name: str, bytes_per_token: float, weight_bytes: int | None, kinds: Mapping[str, list[Value]]) -> Row:
    text, speed = kinds.get("text", []), kinds.get("speed", [])
    cells = {(cell["length"], cell["depth"]): cell for cell in kinds.get("recall", [])}
    return Row(
        name,
        bytes_per_token,
        _fidelity(text) if text else None,
        {place: cell["hits"] / len(cell["answers"]) for place, cell in cells.items()},
        {place: cell["answers"] for place, cell in cells.items()},
        _median(round["prefill"] for round in speed),
        _median(round["decode"] for round in speed),
        weight_bytes,
        _share(kinds.get("turns", [])),
    )


def _share(cells: list[Value]) -> float | None:
    return sum(cell["hits"] for cell in cells) / sum(cell["asked"] for cell in cells) if cells else None


def _fidelity(segments: list[Value]) -> Fidelity:
    kl = np.concatenate([segment["kl"] for segment in segments])
    median, p99 = np.percentile(kl, [50, 99])
    return Fidelity(
        predictions=len(kl),
        kl_mean=float(kl.mean()),
        kl_median=float(median),
        kl_p99=float(p99),
        top1=sum(segment["same_top"] for segment in segments) / len(kl),
        perplexity=math.exp(sum(segment["nll"] for segment in segments) / len(kl)),
    )


def prices(evaluation: Evaluation) -> dict[str, Price]:
    """Of every cache but the exact one that was measured on text, by the key under which engines find it."""
    exact, *others = rows(evaluation)
    least = evaluation.settings.least_top1
    return {
        evaluation.roots[row.name]: Price(
            row.name, one.kl_mean, one.top1, least, one.perplexity, exact.fidelity.perplexity, one.predictions
        )
        for row in others
        for one in (row.fidelity,)
        if one is not None and exact.fidelity is not None and not row.name.startswith(("weights=", "model="))
    }


def remarks(evaluation: Evaluation) -> list[str]:
    """The notes, what a budget chose, caches that the model does not bear, and a recall that says nothing."""
    chosen, found = evaluation.fit, [*evaluation.notes]
    if chosen is not None:
        found.append(f"--cache {chosen.recipe} takes {chosen.bits:.2f} bits per element; its layers' KL add up to ")
        found[-1] += f"{chosen.expected:.2g}"
    found += [
        f"{price.cache} is not borne by this model: top-1 {price.top1:.1%} is below {price.least_top1:.0%}"
        for price in prices(evaluation).values()
        if not price.is_borne
    ]
    exact = next(iter(rows(evaluation)), None)
    if exact is not None and exact.mean_recall is not None and exact.mean_recall < TOLD:
        found.append(
            f"the exact cache itself recalls {100 * exact.mean_recall:.0f} %, so recall says nothing of the others: "
            "--needle FILE gives facts that this model can repeat, --samples N more of them"
        )
    return found


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.median(found)) if found else None


def as_json(evaluation: Evaluation, version: str) -> dict[str, Any]:
    """Plain data; keys and their units never change within a FORMAT."""
    return {
        "format": FORMAT,
        "kvtrove": version,
        "interrupted": evaluation.interrupted,
        "cells": {"done": evaluation.done, "total": evaluation.total},
        "settings": asdict(evaluation.settings),
        "notes": remarks(evaluation),
        "fit": None if evaluation.fit is None else asdict(evaluation.fit),
        "configurations": [_configuration(row) for row in rows(evaluation)],
    }


def _configuration(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "bytes_per_token": row.bytes_per_token,
        "weight_bytes": row.weight_bytes,
        "fidelity": None if row.fidelity is None else asdict(row.fidelity),
        "mean_recall": row.mean_recall,
        "turns": row.turns,
        "recall": [
            {"length": length, "depth": depth, "share": share, "answers": row.answers[length, depth]}
            for (length, depth), share in sorted(row.recall.items())
        ],
        "prefill_tokens_per_second": row.prefill,
        "decode_tokens_per_second": row.decode,
    }
