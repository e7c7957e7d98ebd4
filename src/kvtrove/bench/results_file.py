"""The JSON of a result: written with `--json`, read by `bench compare`. Format in docs/benchmarking.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvtrove.bench.benchmark import Result, Run
from kvtrove.bench.engine import FORMAT as ENGINE_FORMAT
from kvtrove.bench.measures import within
from kvtrove.bench.record import Record
from kvtrove.bench.settings import Slo
from kvtrove.bench.summary import Figure
from kvtrove.config import ConfigError

FORMAT = "kvtrove-bench/1"


def as_json(result: Result, version: str) -> dict[str, Any]:
    """Plain data; keys and their units never change within a FORMAT. The API key is not in it."""
    best = result.sustained
    return {
        "format": FORMAT,
        "kvtrove": version,
        "started": result.started.isoformat(timespec="seconds"),
        "interrupted": result.interrupted,
        "settings": settings_json(result),
        "server": asdict(result.probe),
        "notes": result.notes,
        "sustained_rate": best.load.rate if best else None,
        "runs": [_run(run, result.settings.slo) for run in result.runs],
    }


def settings_json(result: Result) -> dict[str, Any]:
    settings = asdict(result.settings)
    del settings["target"]["api_key"]
    return settings


def _run(run: Run, slo: Slo) -> dict[str, Any]:
    summary = asdict(run.summary)
    return (
        {"load": str(run.load), "rate": run.load.rate, "seed": run.load.seed}
        | summary
        | {"requests": [_record(record, slo) for record in run.records]}
    )


def _record(record: Record, slo: Slo) -> dict[str, Any]:
    return {
        "conversation": record.conversation,
        "turn": record.turn + 1,
        "warmup": record.warmup,
        "status": record.status,
        "error": record.error,
        "arrival": record.arrival,
        "sent": record.sent,
        "ended": record.ended,
        "ttft": record.ttft,
        "tpot": record.tpot,
        "e2e": record.e2e,
        "pause": record.pause,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.output_tokens,
        "within_slo": within(record, slo) if slo else None,
    }


@dataclass(frozen=True)
class StoredRun:
    """What `compare` needs of a run: how it was loaded, and its figures."""

    load: str
    rate: float | None
    completed: int
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Stored:
    """A result that was read back. started: ISO 8601. settings: flat, "workload.turns" -> 1. kind: what wrote it."""

    path: str
    started: str
    settings: dict[str, Any]
    runs: list[StoredRun]
    kind: str = "serve"


@dataclass(frozen=True)
class Side:
    """Results that are compared as one, in the order in which they were measured. path: of the file, or its folder."""

    path: str
    results: list[Stored]

    @classmethod
    def of(cls, path: str) -> Side:
        """A file, or all .json of a folder. ConfigError when there is none, or one is no result."""
        if not Path(path).is_dir():
            return cls(path, [read(path)])
        files = sorted(map(str, Path(path).glob("*.json")))
        if not files:
            raise ConfigError(f"{path} holds no .json; `kvtrove bench alternate --out FOLDER` fills such folders")
        return cls(path, sorted(map(read, files), key=lambda stored: stored.started))


def read(path: str) -> Stored:
    """ConfigError when the file is no result of a `bench` command."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict) or found.get("format") not in (FORMAT, ENGINE_FORMAT):
        raise ConfigError(
            f"{path} is no result of `kvtrove bench ... --json` (format {FORMAT} or {ENGINE_FORMAT}); "
            "commands such as `kvtrove bench serve --json FILE` write one"
        )
    try:
        if found["format"] == ENGINE_FORMAT:
            return _engine(path, found)
        runs = [
            StoredRun(
                run["load"],
                run["rate"],
                run["counts"]["completed"],
                {name: Figure(**figure) for name, figure in run["figures"].items()},
            )
            for run in found["runs"]
        ]
        settings, started = flat({"model": found["server"]["model"], **found["settings"]}), str(found["started"])
    except (LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return Stored(path, started, settings, runs)


def _engine(path: str, found: Mapping[str, Any]) -> Stored:
    """A measurement of an engine is one run; what its machine was counts as a setting."""
    figures = {name: Figure(**figure) for name, figure in found["figures"].items()}
    settings = flat({**found["settings"], "machine": found["machine"]})
    return Stored(path, str(found["started"]), settings, [StoredRun(found["kind"], None, 0, figures)], found["kind"])


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
