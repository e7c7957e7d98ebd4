"""`kvtrove convert heads`: a checkpoint with fewer kv heads, what it saves and what it costs on a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtrove.cli.command import HELP_NAMES, Command
from kvtrove.cli.options import ModelArgument, QuietFlag
from kvtrove.cli.output import console, write_json
from kvtrove.cli.text import say
from kvtrove.config import parse_tokens
from kvtrove.names import find_model

if TYPE_CHECKING:
    from kvtrove.evaluate.results import Row
    from kvtrove.models.heads import Conversion
    from kvtrove.models.spec import ModelSpec
    from kvtrove.plan.kv import KVBytes

convert = typer.Typer(
    name="convert",
    help="Write a checkpoint that needs less cache.",
    context_settings=HELP_NAMES,
    invoke_without_command=True,
)


@convert.callback()
def help_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@convert.command(cls=Command)
def heads(
    model: ModelArgument,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The new folder.")],
    kv_heads: Annotated[int, typer.Option(metavar="N", help="Heads of keys and values; 1 is multi-query attention.")],
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="UTF-8: compare both models on it. Default: do not.")
    ] = None,
    text_tokens: Annotated[str, typer.Option(metavar="N", help="Read at most N tokens of it.")] = "8192",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    quiet: QuietFlag = False,
) -> None:
    """Pool heads of keys and values by their mean (GQA, arXiv 2305.13245): MHA or GQA becomes GQA or MQA.

    The result is an ordinary checkpoint. The price is steep until it is trained on for a while.

    Example: kvtrove convert heads my-model my-model-mqa --kv-heads 1 --text mine.txt
    """
    from kvtrove.models.heads import convert_heads
    from kvtrove.progress import loading

    source, target, limit = find_model(model), Path(out).expanduser(), parse_tokens(text_tokens, "text_tokens")
    if text is not None:
        from kvtrove.evaluate.text import read_text

        read_text(text)  # before gigabytes are written
    with loading(not quiet) as report:
        made = convert_heads(source, target, kv_heads, report)
        rows = [] if text is None else _compared(source, target, text, limit, report)
    if json:
        write_json(_as_json(source, target, made, rows), "-")
    elif not quiet:
        _show(made, rows)
        say(f"kvtrove chat {target}", err=True)


def _compared(source: Path, target: Path, text: str, tokens: int, report: Any) -> list[Row]:
    """Both models on the text: the original, then the converted one."""
    from kvtrove.evaluate.evaluation import evaluate
    from kvtrove.evaluate.results import rows
    from kvtrove.evaluate.settings import Settings

    settings = Settings(str(source), (), ("text",), text=text, text_tokens=tokens, models=(str(target),))
    return rows(evaluate(settings, report=report))


def _cache(spec: ModelSpec) -> KVBytes:
    """Of the exact cache in the checkpoint's dtype."""
    from kvtrove.models.cache import cache_spec
    from kvtrove.plan.kv import kv_bytes

    return kv_bytes(cache_spec(spec, spec.dtype, block_size=1))


def _show(made: Conversion, rows: list[Row]) -> None:
    from kvtrove.evaluate.tables import nats, share, table
    from kvtrove.models.heads import kv_heads_of
    from kvtrove.plan.capacity import readable

    titles: tuple[str, ...] = ("model", "kv heads", "bytes/token", "windows", "weights")
    lines = []
    for name, spec, nbytes in (("original", made.before, made.bytes_before), ("pooled", made.after, made.bytes_after)):
        cache = _cache(spec)
        windows = readable(cache.constant) if cache.constant else "-"
        lines.append([name, str(kv_heads_of(spec)), f"{cache.per_token:,}", windows, readable(nbytes)])
    found = [row.fidelity for row in rows if row.fidelity is not None]
    if found:
        titles += ("KL mean", "top-1", "perplexity")
        for line, one in zip(lines, found, strict=False):  # Ctrl-C leaves fewer
            line += [nats(one.kl_mean), share(one.top1, 2), f"{one.perplexity:,.2f}"]
    console().print(table(titles, lines))


def _as_json(source: Path, target: Path, made: Conversion, rows: list[Row]) -> dict[str, Any]:
    """kv_bytes_per_token, kv_constant_bytes: as `kvtrove plan` counts them. fidelity: as `kvtrove eval` gives it."""
    from kvtrove.models.heads import kv_heads_of

    def side(path: Path, spec: ModelSpec, nbytes: int, row: Row | None) -> dict[str, Any]:
        cache = _cache(spec)
        return {
            "path": str(path),
            "kv_heads": kv_heads_of(spec),
            "kv_bytes_per_token": cache.per_token,
            "kv_constant_bytes": cache.constant,
            "weight_bytes": nbytes,
            "fidelity": asdict(row.fidelity) if row is not None and row.fidelity is not None else None,
        }

    before, after = rows or (None, None)
    return {
        "before": side(source, made.before, made.bytes_before, before),
        "after": side(target, made.after, made.bytes_after, after),
    }
