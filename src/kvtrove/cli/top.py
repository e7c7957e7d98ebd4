"""`kvtrove top`: what a server is doing, live in a terminal; the page at `/` shows the same in a browser."""

from __future__ import annotations

import json as json_format
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from kvtrove.cli.ask import ask
from kvtrove.cli.flags import flag
from kvtrove.cli.output import console
from kvtrove.cli.text import counted, percent

if TYPE_CHECKING:
    from rich.console import Group

BAR = 40
HEIGHTS = " ▁▂▃▄▅▆▇█"
REQUESTS = 12  # rows


def top(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="The server.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, flag(None, "KEY", "Of the server.", envvar="KVTROVE_API_KEY", show_envvar=True)
    ] = None,
    model: Annotated[str | None, flag(None, "NAME", "Of several. Default: the first that is loaded.")] = None,
    interval: Annotated[float, flag(None, "SECONDS", "Between two looks.", min=0.2)] = 2.0,
    once: Annotated[bool, flag(None, None, "Look once, as is done in a pipe.", "--once")] = False,
    json: Annotated[bool, flag(None, None, "The answer of /v1/status, once.", "--json")] = False,
) -> None:
    """Show a server's throughput, cache and requests. Ctrl-C ends it.

    Example: kvtrove top http://127.0.0.1:8000
    """
    path = "/v1/status" if model is None else f"/v1/status?model={quote(model)}"
    status = ask(url, path, api_key)
    if json:
        typer.echo(json_format.dumps(status))
        return
    if once or not sys.stdout.isatty():
        console().print(picture(status))
        return
    from rich.live import Live

    with Live(picture(status), console=console(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(picture(ask(url, path, api_key)), refresh=True)


def picture(status: dict[str, Any]) -> Group:
    """The whole screen."""
    from rich.console import Group
    from rich.text import Text

    recent = status["history"][-12:]
    seconds = max(1, len(recent)) * status["period"]
    total = {name: sum(s[name] for s in recent) for name in ("prompt_tokens", "reused_tokens", "output_tokens")}
    blocks = status["blocks"]
    lines = [
        Text(f"{status['model']}  {status['state']}, up {_span(status['uptime'])}", style="bold"),
        Text(f"context {status['context']:,} tokens, cache {status['cache']}, {status['version']}", style="dim"),
        Text(),
        Text(f"running {status['running']}, waiting {status['waiting']}"),
        Text(
            f"last minute: prompts {total['prompt_tokens'] / seconds:,.1f} tokens/s "
            f"({percent(total['reused_tokens'], total['prompt_tokens'])} reused), "
            f"output {total['output_tokens'] / seconds:,.1f} tokens/s"
        ),
        Text(),
        _bar([("used", blocks["used"], "blue"), ("cached", blocks["cached"], "green"), ("free", blocks["free"], "")]),
        Text(),
        _curve("output tokens/s", [sample["output_tokens"] / status["period"] for sample in status["history"]]),
        _curve("TTFT, s", [sample["ttft"] or 0.0 for sample in status["history"]]),
        _curve("blocks in use, %", [100 * sample["usage"] for sample in status["history"]]),
        Text(),
    ]
    return Group(*lines, _requests(status["in_flight"]))


def _bar(parts: list[tuple[str, int, str]]) -> Any:
    from rich.text import Text

    whole = max(1, sum(size for _, size, _ in parts))
    drawn = Text("blocks ")
    for name, size, colour in parts:
        width = round(BAR * size / whole) if size else 0
        drawn.append({"used": "█", "cached": "▓", "free": "░"}[name] * max(width, size > 0), style=colour)
    return drawn.append("  " + ", ".join(f"{size:,} {name}" for name, size, _ in parts))


def _curve(name: str, values: list[float]) -> Any:
    """The last samples as one line of small bars, and the highest as a number."""
    from rich.text import Text

    shown, high = values[-BAR:], max(values[-BAR:], default=0.0)
    bars = "".join(HEIGHTS[round((len(HEIGHTS) - 1) * value / high)] if high else " " for value in shown)
    return Text(f"{name:>17} ").append(bars.rjust(BAR), style="blue").append(f"  most {high:,.3g}")


def _requests(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    table.title = f"{counted(len(rows), 'request')} in flight"
    for title in ("request", "tenant", "for", "state", "prompt", "reused", "output"):
        table.add_column(title, justify="left" if title in ("request", "tenant", "state") else "right", no_wrap=True)
    for row in rows[:REQUESTS]:
        known = ("prompt_tokens", "reused_tokens", "output_tokens")[: 1 if row["state"] == "running" else 3]
        tokens = [f"{row[name]:,}" for name in known]
        table.add_row(row["id"][:12], row["tenant"][:12], _span(row["seconds"]), row["state"], *tokens)
    return table


def _span(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
