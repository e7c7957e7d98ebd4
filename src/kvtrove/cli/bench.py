"""`kvtrove bench`: load an OpenAI-compatible server and measure it; compare two measurements."""

from __future__ import annotations

import functools
import json as json_format
import time
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtrove.cli.bench_compare import alternate, compare, require_httpx
from kvtrove.cli.bench_engine import register
from kvtrove.cli.command import HELP_NAMES, Command
from kvtrove.cli.flags import flag, spread
from kvtrove.cli.options import QuietFlag
from kvtrove.cli.output import INTERRUPTED, check_folders, console, write_json
from kvtrove.config import ConfigError, parse_tokens

if TYPE_CHECKING:
    from kvtrove.bench.benchmark import Result, Settings

bench = typer.Typer(
    name="bench",
    help="Measure an engine, its kernels or a server, and compare results.",
    context_settings=HELP_NAMES,
    invoke_without_command=True,
)
register(bench)
for command in (compare, alternate):
    bench.command(cls=Command)(command)


@bench.callback()
def help_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_server, _load = functools.partial(flag, "Server"), functools.partial(flag, "Load")
_work, _goal = functools.partial(flag, "Workload"), functools.partial(flag, "Goal")
_output = functools.partial(flag, "Output")


@dataclass(frozen=True)
class ServerOptions:
    """Fields of bench.settings.Target, as text."""

    model: Annotated[str | None, _server("NAME", "Default: the first that the server offers.")] = None
    api_key: Annotated[
        str | None, _server("KEY", "Never shown or stored.", envvar="OPENAI_API_KEY", show_envvar=True)
    ] = None
    endpoint: Annotated[str, _server("KIND", "chat or completions.")] = "chat"
    timeout: Annotated[str, _server("TIME", "A request that takes longer is abandoned, and counted as that.")] = "10m"
    ignore_eos: Annotated[
        bool, _server(None, "Ask for answers of exactly the given length.", "--ignore-eos/--no-ignore-eos")
    ] = True
    temperature: Annotated[float | None, _server("T", "Default: the server's.")] = None
    extra_body: Annotated[str | None, _server("JSON", "Object with more fields for every request.")] = None


@dataclass(frozen=True)
class LoadOptions:
    """Fields of bench.settings.Load, as text, and the rates of a sweep."""

    rate: Annotated[float | None, _load("N", "Arrivals per second, whether or not answers come.")] = None
    rates: Annotated[str | None, _load("N,N,...", "Find the highest of these rates that keeps the goal.")] = None
    arrivals: Annotated[str, _load("KIND", "Of --rate: poisson, constant or burst (gamma).")] = "poisson"
    burstiness: Annotated[float, _load("X", "Shape of burst: 1 is Poisson, less comes in thicker bursts.")] = 0.25
    concurrency: Annotated[int | None, _load("N", "Keep N requests going instead of a rate.")] = None
    requests: Annotated[
        int | None, _load("N", "Arrivals (conversations, with --turns). Default: 100, or all of a file.")
    ] = None
    duration: Annotated[str | None, _load("TIME", "No arrivals after TIME; what runs may end.")] = None
    warmup: Annotated[int, _load("N", "The first N arrivals are not measured.")] = 0
    seed: Annotated[
        int | None, _load("N", "Same text, lengths and arrivals again. Default: another one each time.")
    ] = None


@dataclass(frozen=True)
class WorkloadOptions:
    """Fields of bench.settings.Workload, as text."""

    input_tokens: Annotated[str, _work("N|A:B", "New prompt tokens per request, or a range.")] = "512"
    output_tokens: Annotated[
        str | None, _work("N|A:B", "Tokens per answer, or a range. Default: 128, or what a file says.")
    ] = None
    prefix_tokens: Annotated[str | None, _work("N", "A beginning that prompts share, as the system message.")] = None
    prefixes: Annotated[int, _work("N", "How many different beginnings there are.")] = 1
    turns: Annotated[int, _work("N", "Requests per conversation, each on top of the last.")] = 1
    think_time: Annotated[str, _work("TIME", "Between an answer and the next turn.")] = "0s"
    prompts: Annotated[str | None, _work("FILE", "Your own prompts, as JSONL.")] = None
    trace: Annotated[str | None, _work("FILE", "A recorded trace: Mooncake, WEKA or Azure.")] = None
    time_scale: Annotated[float, _work("X", "Replay the trace X times as fast.")] = 1.0
    max_input_tokens: Annotated[str | None, _work("N", "Cut longer prompts of the trace.")] = None
    max_output_tokens: Annotated[str | None, _work("N", "Cut longer answers of the trace.")] = None


@dataclass(frozen=True)
class GoalOptions:
    """Fields of bench.settings.Slo, as text."""

    slo_ttft: Annotated[str | None, _goal("TIME", "Longest time to the first token, such as 1s.")] = None
    slo_tpot: Annotated[str | None, _goal("TIME", "Longest time per token after it, such as 50ms.")] = None
    slo_share: Annotated[float, _goal("X", "Of --rates: share of the requests that must keep both.")] = 0.9


@bench.command(cls=Command)
@spread
def serve(
    url: Annotated[str, _server("URL", "The server, such as http://127.0.0.1:8000, or its API's root if not /v1.")],
    server: ServerOptions,
    load: LoadOptions,
    workload: WorkloadOptions,
    goal: GoalOptions,
    json: Annotated[str | None, _output("FILE", "Write everything that was measured; - is stdout.")] = None,
    html: Annotated[str | None, _output("FILE", "Write a report with plots, one page without outside parts.")] = None,
    quiet: QuietFlag = False,
) -> None:
    """Measure a server: TTFT, TPOT, ITL, throughput, goodput, cache. Ctrl-C ends it with what was measured so far.

    Example: kvtrove bench serve --url http://127.0.0.1:8000 --rate 4 --slo-ttft 1s --slo-tpot 50ms
    """
    require_httpx()
    settings = _settings(url, server, load, workload, goal)
    check_folders(json, html)
    result = _measure(settings, quiet)
    _write(result, json, html)
    if not quiet or json != "-":
        _show(result, to_stderr=json == "-")
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


def _settings(
    url: str, server: ServerOptions, load: LoadOptions, workload: WorkloadOptions, goal: GoalOptions
) -> Settings:
    """Text to values; the dataclasses check them."""
    from kvtrove.bench.benchmark import Settings
    from kvtrove.bench.settings import Load, Slo, Span, Target, Workload, parse_duration

    def duration(text: str | None, what: str) -> float | None:
        return None if text is None else parse_duration(text, what)

    def tokens(text: str | None, what: str) -> int | None:
        return None if text is None else parse_tokens(text, what)

    seed = SystemRandom().randrange(2**31) if load.seed is None else load.seed
    output = None if workload.output_tokens is None else Span.parse(workload.output_tokens, "output_tokens")
    return Settings(
        Target(
            url=url,
            model=server.model,
            api_key=server.api_key or None,
            endpoint=server.endpoint,
            timeout=parse_duration(server.timeout, "timeout"),
            ignore_eos=server.ignore_eos,
            temperature=server.temperature,
            extra_body=_object(server.extra_body),
        ),
        Load(
            rate=load.rate,
            arrivals=load.arrivals,
            burstiness=load.burstiness,
            concurrency=load.concurrency,
            requests=load.requests,
            duration=duration(load.duration, "duration"),
            warmup=load.warmup,
            seed=seed,
        ),
        Workload(
            input_tokens=Span.parse(workload.input_tokens, "input_tokens"),
            output_tokens=output,
            prefix_tokens=tokens(workload.prefix_tokens, "prefix_tokens") or 0,
            prefixes=workload.prefixes,
            turns=workload.turns,
            think_time=parse_duration(workload.think_time, "think_time"),
            prompts=workload.prompts,
            trace=workload.trace,
            time_scale=workload.time_scale,
            max_input_tokens=tokens(workload.max_input_tokens, "max_input_tokens"),
            max_output_tokens=tokens(workload.max_output_tokens, "max_output_tokens"),
        ),
        Slo(duration(goal.slo_ttft, "slo_ttft"), duration(goal.slo_tpot, "slo_tpot"), goal.slo_share),
        _rates(load.rates),
    )


def _rates(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(rate) for rate in text.split(",")) if text is not None else ()
    except ValueError as error:
        raise ConfigError(f"rates: cannot read {text!r}; write numbers with commas between, such as 1,2,4,8") from error


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json_format.loads(text) if text is not None else {}
    except ValueError as error:
        raise ConfigError(f"extra_body: {text!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"extra_body: {text!r} is no JSON object; write for example '{{\"top_k\": 1}}'")
    return found


def _measure(settings: Settings, quiet: bool) -> Result:
    import asyncio

    from kvtrove.bench.benchmark import benchmark
    from kvtrove.bench.live import Live

    with Live(not quiet, time.monotonic) as live:
        return asyncio.run(benchmark(settings, live))


def _write(result: Result, json: str | None, html: str | None) -> None:
    from kvtrove import __version__
    from kvtrove.bench.html import page
    from kvtrove.bench.results_file import as_json

    if json is not None:
        write_json(as_json(result, __version__), json)
    if html is not None:
        Path(html).write_text(page(result), encoding="utf-8")


def _show(result: Result, to_stderr: bool) -> None:
    from kvtrove.bench.tables import result_table

    console(to_stderr).print(result_table(result))
