"""`kvtrove simulate`: a recorded load through the scheduler and the cache, without a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtrove.cli.flags import flag, setting, spread
from kvtrove.cli.output import write_json
from kvtrove.config import ConfigError, EngineConfig, parse_size, parse_tokens

if TYPE_CHECKING:
    from kvtrove.kv.spec import KVCacheSpec
    from kvtrove.plan.model import PlanModel
    from kvtrove.plan.simulate import SimulationResult, SimulationSettings
    from kvtrove.plan.traces import Trace

TraceFile = Annotated[Path, typer.Option("--trace", metavar="FILE", help="Mooncake, WEKA or Azure; .gz and .xz too.")]
JsonFile = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON; - is standard output.")
]


@dataclass(frozen=True)
class CacheOptions:
    """How large the cache is; several sizes, separated by commas, give curves."""

    kv_tokens: Annotated[
        str | None, flag("Cache", "TOKENS", "Such as 1Mi, or 1Mi,4Mi,unlimited; 1Mi when left out.")
    ] = None
    kv: Annotated[str | None, flag("Cache", "SIZE", "In bytes instead, such as 8GiB; needs MODEL.")] = None
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Whose cache and step times are simulated; a name or path.")
    ] = None
    cache: Annotated[str, setting("cache", "Cache")] = EngineConfig.cache
    block_size: Annotated[int | None, flag("Cache", "N", "Tokens in a block; the trace's own when left out.")] = None
    policy: Annotated[str, setting("eviction", "Cache")] = EngineConfig.eviction


@dataclass(frozen=True)
class ServiceOptions:
    """What serves it."""

    replicas: Annotated[int, flag("Service", "N", "Engines behind a router.")] = 1
    router: Annotated[str, flag("Service", "NAME", "round-robin or prefix.")] = "round-robin"
    max_num_seqs: Annotated[int, setting("max_num_seqs", "Service")] = EngineConfig.max_num_seqs
    max_num_batched_tokens: Annotated[int, setting("max_num_batched_tokens", "Service")] = (
        EngineConfig.max_num_batched_tokens
    )
    max_concurrent_prefills: Annotated[int, setting("max_concurrent_prefills", "Service")] = (
        EngineConfig.max_concurrent_prefills
    )
    hardware: Annotated[str | None, flag("Service", "NAME", "Datasheet, such as h100; needs MODEL.")] = None
    calibration: Annotated[Path | None, flag("Service", "FILE", "Measured speeds, as `kvtrove bench` writes them.")] = (
        None
    )


@dataclass(frozen=True)
class LoadOptions:
    """How the trace is replayed."""

    users: Annotated[int | None, flag("Load", "N", "Sessions that run at once; the others wait their turn.")] = None
    closed: Annotated[
        bool | None,
        typer.Option(
            "--closed/--open", help="Sessions go on after each answer, or by the clock.", rich_help_panel="Load"
        ),
    ] = None
    instant: Annotated[bool, flag("Load", None, "Steps take no time: what the cache alone is worth.", "--instant")] = (
        False
    )
    speed: Annotated[float, flag("Load", "FACTOR", "Of the rate of arrivals.")] = 1.0
    limit: Annotated[int | None, flag("Load", "N", "Only the first N requests.")] = None
    slo_ttft: Annotated[str | None, flag("Load", "TIME", "Longest time to the first token, for the goodput.")] = None
    slo_tpot: Annotated[str | None, flag("Load", "TIME", "Longest time per further token.")] = None


@spread
def simulate(
    trace: TraceFile,
    cache: CacheOptions,
    service: ServiceOptions,
    load: LoadOptions,
    json: JsonFile = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Curves as a page.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Curves as a picture (needs matplotlib).")] = None,
) -> None:
    """Replay a recorded load: hit ratio, latencies, goodput and preemptions for each size of the cache.

    Example: kvtrove simulate --trace requests.jsonl --kv-tokens 1M,4M
    """
    from dataclasses import replace

    from kvtrove.plan.simulate.report import simulation_report
    from kvtrove.plan.traces import read_trace
    from kvtrove.plan.units import parse_seconds

    recorded = read_trace(trace)
    if load.limit is not None:
        recorded = replace(recorded, requests=recorded.requests[: max(1, load.limit)])
    limits = {"slo_ttft": load.slo_ttft, "slo_tpot": load.slo_tpot}
    ttft, tpot = (None if text is None else parse_seconds(text, name) for name, text in limits.items())
    results = [_run(recorded, one, quiet=json == "-") for one in _settings(recorded, cache, service, load)]
    runs = [result.as_json(ttft, tpot) for result in results]
    slo = {name: limit for name, limit in (("ttft", ttft), ("tpot", tpot)) if limit is not None}
    report = simulation_report(recorded, runs, _assumed(cache, service, load), slo)
    write_json(report, json, indent=1)
    if html is not None or png is not None:
        _draw(html, png, report)
    if json != "-":
        from kvtrove.cli.simulate_view import show_simulation

        show_simulation(report)


def _draw(html: Path | None, png: Path | None, report: dict[str, Any]) -> None:
    from kvtrove.cli.simulate_curves import html_page, write_png

    if html is not None:
        html.write_text(html_page(report), encoding="utf-8")
    if png is not None:
        write_png(png, report)


def _run(trace: Trace, settings: SimulationSettings, quiet: bool) -> SimulationResult:
    from kvtrove.plan.simulate import simulate as run

    if quiet or not sys.stderr.isatty():
        return run(trace, settings)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=len(trace.requests))
        return run(trace, settings, lambda done, total: bar.update(task, completed=done, total=total))


def _settings(
    trace: Trace, cache: CacheOptions, service: ServiceOptions, load: LoadOptions
) -> Iterator[SimulationSettings]:
    """One for each size."""
    from dataclasses import replace

    from kvtrove.kv.recipe import recipe
    from kvtrove.plan.kv import cache_of
    from kvtrove.plan.simulate import SimulationSettings
    from kvtrove.plan.simulate.settings import INSTANT
    from kvtrove.scheduler.scheduler import SchedulerLimits

    model = _model(cache)
    block_size = cache.block_size or trace.block_size or EngineConfig.block_size
    if model is None and recipe(cache.cache).parts:
        raise ConfigError("cache: a recipe changes the cache of a model; name it")
    geometry = None if model is None else cache_of(model, cache.cache, block_size)
    if service.max_num_batched_tokens < service.max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens: {service.max_num_batched_tokens} is smaller than max_num_seqs; "
            f"raise it to {service.max_num_seqs}"
        )
    limits = SchedulerLimits(service.max_num_seqs, service.max_num_batched_tokens, service.max_concurrent_prefills)
    if load.instant and geometry is None:  # whole prompts at once change nothing where no layer has a window
        longest = max(request.prompt_tokens for request in trace.requests)
        limits = replace(limits, max_num_batched_tokens=max(limits.max_num_batched_tokens, longest))
    for num_blocks in _sizes(
        cache, block_size, None if geometry is None else (geometry.block_bytes, geometry.num_growing)
    ):
        yield SimulationSettings(
            block_size=block_size,
            num_blocks=num_blocks,
            cost=INSTANT if load.instant else _cost(model, service, geometry),
            limits=limits,
            cache=geometry,
            policy=cache.policy,
            replicas=service.replicas,
            router=service.router,
            closed=trace.has_sessions if load.closed is None else load.closed,
            users=load.users,
            speed=load.speed,
        )


def _model(cache: CacheOptions) -> PlanModel | None:
    if cache.model is None:
        return None
    from kvtrove.names import find_model
    from kvtrove.plan.source import read_model

    return read_model(find_model(cache.model))


def _sizes(cache: CacheOptions, block_size: int, row: tuple[int, int] | None) -> list[int | None]:
    """Blocks of each size. row: bytes of a block's row, and groups of layers, of a model."""
    if cache.kv is not None and cache.kv_tokens is not None:
        raise ConfigError("kv and kv_tokens say the same thing twice; give one of them")
    if cache.kv is not None:
        if row is None:
            raise ConfigError("kv: bytes need a model; name it, or the size in tokens with --kv-tokens")
        return [max(1, parse_size(text, "kv") // row[0]) for text in cache.kv.split(",")]
    groups = 1 if row is None else row[1]
    return [
        None if text.strip() == "unlimited" else max(1, parse_tokens(text, "kv_tokens") // block_size) * groups
        for text in (cache.kv_tokens or "1Mi").split(",")
    ]


def _assumed(cache: CacheOptions, service: ServiceOptions, load: LoadOptions) -> str:
    """Whose steps cost what the simulated ones do."""
    from kvtrove.plan.hardware import ASSUMED
    from kvtrove.plan.simulate.settings import REFERENCE

    if load.instant:
        return "steps that take no time"
    if service.calibration is not None:
        return f"{cache.model or 'the model'} as measured in {service.calibration}"
    return f"{cache.model} on {service.hardware or ASSUMED}, by its datasheet" if cache.model else REFERENCE


def _cost(model: PlanModel | None, service: ServiceOptions, cache: KVCacheSpec | None) -> Any:
    from kvtrove.plan.cost import FittedCost, cost_of
    from kvtrove.plan.hardware import ASSUMED, find_machine, read_calibration
    from kvtrove.plan.simulate.settings import REFERENCE_STEP

    machine = (
        read_calibration(service.calibration) if service.calibration else find_machine(service.hardware or ASSUMED)
    )
    if model is not None and cache is not None:
        return cost_of(model, machine, cache, typical_context=8192)
    if service.hardware is not None:
        raise ConfigError("hardware: a datasheet needs a model; name it, or a --calibration with measured steps")
    if machine.fit is None and service.calibration is not None:
        raise ConfigError(f"calibration: {service.calibration} has no 'step'; name a model, or calibrate with a model")
    return FittedCost(machine.fit or REFERENCE_STEP)
