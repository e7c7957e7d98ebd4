"""`kvtrove serve`: the HTTP server on a checkpoint, or on the embedded model."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtrove import __version__
from kvtrove.cli.flags import flag, spread
from kvtrove.cli.options import EngineOptions, OptionalModel
from kvtrove.cli.output import extra
from kvtrove.cli.serve_models import FleetOptions, serve_models
from kvtrove.config import ConfigError, Environment
from kvtrove.names import display_name

if TYPE_CHECKING:
    from kvtrove.server.service import Service
    from kvtrove.server.settings import Limits


log = logging.getLogger(__name__)
_limit = functools.partial(flag, "Limits")


@dataclass(frozen=True)
class LimitOptions:
    """The limits that operators turn most; the others keep their defaults."""

    max_queue: Annotated[int, _limit("N", "Sequences that may wait; then requests get 429.")] = 256
    max_concurrent: Annotated[int, _limit("N", "Requests in flight at once.")] = 1024
    max_prompt_tokens: Annotated[int | None, _limit("N", "Longest prompt; the context if left out.")] = None
    max_n: Annotated[int, _limit("N", "Most sequences per prompt (n, best_of, beams).")] = 32
    max_body_size: Annotated[str, _limit("SIZE", "Largest request, for example 8MiB.")] = "4MiB"
    request_timeout: Annotated[float, _limit("SECONDS", "Longest time that a request may take.")] = 600.0
    idle_timeout: Annotated[float, _limit("SECONDS", "Longest silence of a client.")] = 60.0
    step_timeout: Annotated[float, _limit("SECONDS", "A step of the engine that takes longer hangs.")] = 300.0
    max_connections: Annotated[int, _limit("N", "Connections open at once.")] = 4096
    keep_alive: Annotated[float, _limit("SECONDS", "Longest silence of a stream.")] = 10.0

    def limits(self) -> Limits:
        from kvtrove.config import parse_size
        from kvtrove.server.settings import Limits

        return Limits(
            max_body_bytes=parse_size(self.max_body_size, "max_body_size"),
            max_prompt_tokens=self.max_prompt_tokens,
            max_n=self.max_n,
            max_concurrent=self.max_concurrent,
            max_queue=self.max_queue,
            request_timeout=self.request_timeout,
            idle_timeout=self.idle_timeout,
            step_timeout=self.step_timeout,
            max_connections=self.max_connections,
            keep_alive=self.keep_alive,
        )


@spread
def serve(
    context: typer.Context,
    limits: LimitOptions,
    engine: EngineOptions,
    fleet: FleetOptions,
    model: OptionalModel = "demo",
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; elsewhere needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 takes any free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Opens the server; KVTROVE_API_KEY keeps it out of `ps`.")
    ] = None,
    api_keys: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML: a table with a key per tenant.")] = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What requests call the model; repeatable.")
    ] = None,
    tool_format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="How the model writes tool calls: auto, hermes, qwen3_coder, llama3, mistral, ...",
        ),
    ] = "auto",
    reasoning_parser: Annotated[
        str, typer.Option(metavar="FORMAT", help="How the model writes thoughts: auto, none, think, harmony, ...")
    ] = "auto",
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A web page that may call the server; repeatable.")
    ] = None,
    drain_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time that accepted requests have after SIGTERM.")
    ] = 60.0,
    warm_up: Annotated[
        bool, typer.Option("--warm-up/--no-warm-up", help="Run and measure the largest steps before the first request.")
    ] = True,
    cache_report: Annotated[
        bool, typer.Option("--cache-report", help="Every answer says what the cache did for it.")
    ] = False,
    stable_prefix: Annotated[
        bool,
        typer.Option("--stable-prefix", help="Dates and nonces that open a prompt go to its end."),
    ] = False,
    response_cache: Annotated[
        str | None,
        typer.Option(metavar="SIZE|URL", help="Keep whole answers at temperature 0: 64MiB, or redis://host/db."),
    ] = None,
    response_cache_ttl: Annotated[float, typer.Option(metavar="SECONDS", help="How long they are kept.")] = 3600.0,
    vllm_metrics: Annotated[
        bool, typer.Option("--vllm-metrics/--no-vllm-metrics", help="Metrics under vLLM's names beside our own.")
    ] = True,
    ssl_certfile: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate chain (PEM): HTTPS.")] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, unless in the same file.")] = None,
    root_path: Annotated[str, typer.Option(metavar="PATH", help="Where a proxy mounts the server, such as /llm.")] = "",
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of requests without a seed: the same sequence again.")
    ] = None,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "info",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log one JSON object per line.")] = False,
    listen_fd: Annotated[int | None, typer.Option("--fd", hidden=True, help="A socket that listens already.")] = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API does.

    Example: kvtrove serve --port 8000
    """
    if log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level: {log_level!r} is not one of debug, info, warning, error")
    from kvtrove.server import logs

    logs.configure(log_level, log_json)
    log.info("kvtrove %s starts with %s", __version__, model if fleet.models is None else fleet.models)
    try:
        from kvtrove.server.activity import Activity
        from kvtrove.server.app import create_app
        from kvtrove.server.auth import load_keyring
        from kvtrove.server.metrics import Metrics, metrics_router
        from kvtrove.server.metrics_facts import Facts
        from kvtrove.server.metrics_traces import Traces
        from kvtrove.server.page.router import page_router
        from kvtrove.server.reports import Reports
        from kvtrove.server.routes.reports import reports_router
        from kvtrove.server.run import address_of, bind, listener_of, run
        from kvtrove.server.service import Service
        from kvtrove.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}, which is not installed: {extra('server')}") from error
    environment = Environment.read()
    keyring = load_keyring(environment.api_key if api_key is None else api_key, environment.admin_key, api_keys)
    settings = ServerSettings(
        host=host,
        port=port,
        served_model_names=tuple(served_model_name or (display_name(model),)),
        cors_origins=tuple(cors_origin or ()),
        drain_timeout=drain_timeout,
        tool_format=tool_format,
        reasoning_parser=reasoning_parser,
        stable_prefix=stable_prefix,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        root_path=root_path,
        response_cache=response_cache,
        response_cache_ttl=response_cache_ttl,
        limits=limits.limits(),
    )
    if fleet.models is not None:
        return serve_models(fleet, settings, keyring, context)
    listener = bind(settings, keyring) if listen_fd is None else listener_of(listen_fd)
    llm = engine.load(model, warm_up=warm_up, seed=seed).llm_engine
    metrics = Metrics(Facts.of(llm, settings.served_model_names[0]), vllm_names=vllm_metrics)
    reports = Reports(llm.tokenizer, llm.config.block_size, always=cache_report, on_report=metrics.on_report)
    activity = Activity(llm.config.block_size)
    service = Service(llm, settings, [reports, metrics, activity, Traces(settings.served_model_names[0])])
    address = address_of(listener, settings)
    typer.echo(banner(service, address))
    typer.echo(f"memory: {llm.ledger.sentence()}")
    typer.echo(f"page: {address}/  metrics: {address}/metrics  stop: Ctrl-C")
    routers = [reports_router(reports), metrics_router(metrics), page_router(activity, llm)]
    run(create_app(service, keyring, routers), service, listener, keyring)


def banner(service: Service, address: str) -> str:
    """What the operator wants to know first."""
    kv = service.engine.stats.kv
    blocks = f"{kv.num_blocks:,} blocks of {service.config.block_size} tokens"
    return f"{address}/v1 serves {service.model_name}: context {service.max_model_len:,} tokens, KV cache {blocks}"
