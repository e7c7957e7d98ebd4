"""The plan on a terminal: ledger with a bar, frontier, formats, other engines, load, and the command."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from kvtrove.cli.output import console as output_console
from kvtrove.plan.capacity import readable
from kvtrove.plan.equivalents import KTransformers
from kvtrove.plan.hardware import Machine
from kvtrove.plan.ledger import bar
from kvtrove.plan.model import PlanModel
from kvtrove.plan.planner import Plan
from kvtrove.plan.units import show_seconds
from kvtrove.report.table import FittingTable

BAR = 60
FRONTIER = 7  # columns
COLOURS = {
    **{"W": "blue", "K": "green", "S": "cyan", "M": "bright_green"},
    **{"A": "yellow", "R": "magenta", ".": "bright_black"},
}


def show_plan(plan: Plan, report: dict[str, Any], kt: KTransformers, machine: Machine) -> None:
    console = output_console()
    _headline(console, plan, report)
    _ledger(console, plan, report)
    _frontier(console, plan)
    _formats(console, plan)
    if "load" in report:
        _load(console, report["load"], machine)
    _other_engines(console, report, kt)
    for preset in report.get("presets", ()):
        _preset(console, preset)
    _command(console, report)


def _headline(console: Console, plan: Plan, report: dict[str, Any]) -> None:
    model, kv = plan.model, plan.kv
    about = "" if model.exact_weights else "about "
    console.print(
        f"[bold]{model.name}[/bold]  {model.architecture}, {about}{model.parameters.total / 1e9:.3g} B parameters"
    )
    if model.assumed:
        console.print(f"[yellow]about:[/yellow] {model.assumed}", soft_wrap=True)
    constant = f" + {readable(kv.constant)} constant" if kv.constant else ""
    console.print(f"KV cache: {kv.per_token:,} bytes per token{constant} in {plan.stored_as}")
    if size := plan.fitting.cache.mark_bytes:
        console.print(
            f"Running states: {readable(size)} a sequence, and as much a checkpoint = K and V of "
            f"{plan.checkpoint_tokens:,} tokens"
        )
    if "classic_bytes" in report:
        size = report["classic_bytes"]
        console.print(
            f"  2 x layers x tokens x hidden x batch x bytes agrees: {size / 1e9:.2f} GB ({size / 2**30:.2f} GiB) "
            f"for {plan.users} x {plan.context:,} tokens"
        )


def _ledger(console: Console, plan: Plan, report: dict[str, Any]) -> None:
    ledger = plan.ledger
    table = FittingTable(title=f"Memory: {readable(ledger.total)} ({report['device']})", title_justify="left")
    table.add_column("")
    table.add_column("size", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    notes = {
        "weights": f"{'' if plan.model.exact_weights else 'about, '}{_numbers(plan.model)}",
        "kv": f"{plan.num_blocks:,} blocks of {plan.wishes.block_size} tokens",
        "seats": f"running states and open blocks of {plan.users:,} users",
        "activations": "measured" if ledger.measured else f"a step of {plan.wishes.max_num_batched_tokens} tokens",
        "reserve": "interpreter, libraries, allocators",
        "free": "",
    }
    for name, size in ledger.entries().items():
        table.add_row(name, readable(size) if size else "0", f"{100 * size / ledger.total:.1f} %", notes[name])
    console.print(table)
    console.print(Text("|") + Text.assemble(*((c, COLOURS[c]) for c in bar(ledger, BAR))) + Text("|"))


def _numbers(model: PlanModel) -> str:
    """``bfloat16``, or ``int8, bfloat16 rest``: what the weights are stored in."""
    if model.precision is None or not model.precision.quantised:
        return model.dtype
    return f"{model.precision.weights}, {model.dtype} rest"


def _frontier(console: Console, plan: Plan) -> None:
    table = FittingTable(title="Users x context that fit", title_justify="left")
    table.add_column("users", justify="right")
    full = [point for point in plan.frontier if point[1] == plan.fitting.bound]
    shown = (full[-1:] + plan.frontier[len(full) :])[:FRONTIER]
    for users, _ in shown:
        table.add_column(f"{users:,}", justify="right", no_wrap=True)
    table.add_row("context", *(f"{context:,}" for _, context in shown))
    console.print(table)
    console.print(f"chosen: [bold]{plan.users:,} users x {plan.context:,} tokens[/bold]")


def _formats(console: Console, plan: Plan) -> None:
    table = FittingTable(title="What each cache buys", title_justify="left")
    for name in ("--cache", "bytes/token", "longest context", "most users", ""):
        table.add_column(name, justify="left" if name in ("--cache", "") else "right")
    for choice in plan.formats:
        note = "chosen" if choice.name == plan.cache else ""
        table.add_row(choice.name, f"{choice.kv.per_token:,}", f"{choice.max_context:,}", f"{choice.max_users:,}", note)
    console.print(table)


def _load(console: Console, load: dict[str, Any], machine: Machine) -> None:
    source = "measured" if machine.measured else "datasheet, not measured"
    table = FittingTable(
        title=f"Load: {load['prompt']:,.0f} prompt + {load['new']:,.0f} new tokens", title_justify="left"
    )
    for name in ("", "per second", "TTFT", "TPOT", "decoding", "KV tokens", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    rows = {"asked for": load["at_rate"], "most": load["max_rate"], "within limits": load["max_rate_within_slo"]}
    for name, at in rows.items():
        if at is not None:
            times = (show_seconds(at["ttft"]), show_seconds(at["tpot"]))
            note = f"! {at['bottleneck']}" if at["bottleneck"] else ""
            table.add_row(name, f"{at['rate']:.3g}", *times, f"{at['decoding']:.1f}", f"{at['kv_tokens']:,.0f}", note)
    console.print(table)
    console.print(f"  {machine.name} ({source}): {machine.bandwidth / 1e9:.4g} GB/s, {machine.flops / 1e12:.3g} TFLOPS")


def _other_engines(console: Console, report: dict[str, Any], kt: KTransformers) -> None:
    console.print("[bold]The same in other engines[/bold]")
    console.print(f"  KTransformers  {kt.arguments}", soft_wrap=True)
    console.print(
        f"    {kt.max_batch_size} x ({kt.prompt_tokens} prompt + {kt.max_new_tokens} new) = {kt.needed:,} slots; its "
        f"own rule cache_lens > {kt.max_batch_size} x {kt.max_new_tokens} = {kt.simple_rule:,} forgets the prompts",
        soft_wrap=True,
    )
    console.print(f"  llama.cpp      {report['llama_cpp']}", soft_wrap=True)
    console.print(f"  vLLM           {report['vllm']}", soft_wrap=True)


def _preset(console: Console, preset: dict[str, Any]) -> None:
    if preset["command"] or preset["context"]:
        console.print(
            f"  {preset['name']:>14}  {preset['users']:,} x {preset['context']:,} tokens  {preset['command'] or ''}",
            soft_wrap=True,
        )
    else:
        console.print(f"  {preset['name']:>14}  {preset['why']}", soft_wrap=True)


def _command(console: Console, report: dict[str, Any]) -> None:
    command = report["command"]
    console.print(f"[bold]{command}[/bold]" if command else report["why_no_command"], soft_wrap=True)
