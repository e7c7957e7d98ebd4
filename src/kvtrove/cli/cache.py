"""`kvtrove cache`: look into, check, empty and move a disk tier without an engine; checkpoints of a running server."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtrove.cli.ask import ask
from kvtrove.cli.command import Command
from kvtrove.cli.flags import flag
from kvtrove.cli.options import JsonFlag
from kvtrove.cli.text import counted, say

if TYPE_CHECKING:
    from kvtrove.kv.tiers.contents import Moved

DAMAGED = 1  # exit code of `verify`

cache = typer.Typer(
    name="cache",
    help="What outlives the engine: the directory of a disk tier, and checkpoints of sequences.",
    no_args_is_help=True,
)

Where = Annotated[str, typer.Argument(metavar="DIR", help="Directory of the tier, as given to --tier disk:DIR.")]
Exported = Annotated[Path, typer.Argument(metavar="FILE", help="File that rows are exported to.")]


@cache.command("list", cls=Command)
def list_(path: Where, as_json: JsonFlag = False) -> None:
    """Say what a directory holds, by model and format."""
    from kvtrove.kv.tiers.contents import contents

    found = contents(path)
    families = [asdict(family) | asdict(summary) for family, summary in found.families.items()]
    if as_json:
        figures = {"path": found.path, "nbytes": found.nbytes, "segments": found.segments, "damaged": found.damaged}
        typer.echo(json.dumps(figures | {"families": families}))
        return
    rows = sum(family["rows"] for family in families)
    say(f"{found.path}: {counted(rows, 'row')} in {counted(found.segments, 'segment')}, {_size(found.nbytes)}")
    for family in families:
        name = family["format"] or "unnamed format"
        what = f"{counted(family['rows'], 'row')}, {_size(family['nbytes'])}"
        say(f"  {name} ({family['spec']}): {what}, {_day(family['oldest'])} to {_day(family['newest'])}")
    if found.damaged:
        say(f"  {counted(found.damaged, 'row')} damaged: kvtrove cache verify --repair {found.path}")


@cache.command(cls=Command)
def verify(
    path: Where,
    repair: Annotated[bool, typer.Option("--repair", help="Let damaged rows never be found again.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Read every row and compare its checksum. Exit code 1 when some are damaged and not repaired."""
    from kvtrove.kv.tiers.contents import verify as verify_

    started = time.perf_counter()
    result = verify_(path, repair=repair)
    rate = result.nbytes / max(time.perf_counter() - started, 1e-9)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        say(f"{counted(result.rows, 'row')} verified, {_size(result.nbytes)} at {_size(rate)}/s")
        done = "taken out" if repair else "run again with --repair to take them out"
        say(f"{counted(result.damaged, 'row')} damaged" + (f": {done}" if result.damaged else ""))
    if result.damaged and not repair:
        raise typer.Exit(DAMAGED)


@cache.command(cls=Command)
def clear(path: Where, as_json: JsonFlag = False) -> None:
    """Delete every row. The directory stays a tier."""
    from kvtrove.kv.tiers.contents import clear as clear_

    rows = clear_(path)
    _answer({"rows": rows}, f"{counted(rows, 'row')} deleted", as_json)


@cache.command(cls=Command)
def export(path: Where, file: Exported, as_json: JsonFlag = False) -> None:
    """Copy every undamaged row into one file."""
    from kvtrove.kv.tiers.contents import export as export_

    moved = export_(path, file)
    _answer(asdict(moved), _moved(moved, f"exported to {file}"), as_json)


@cache.command("import", cls=Command)
def import_(
    path: Where,
    file: Exported,
    size: Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes that the directory may take.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Take rows over from an exported file. The directory is made if there is none."""
    from kvtrove.config import parse_size
    from kvtrove.kv.tiers.contents import import_ as take_over
    from kvtrove.kv.tiers.spec import default_size

    moved = take_over(path, file, parse_size(size, "--size") if size else default_size(path))
    _answer(asdict(moved), _moved(moved, f"imported into {path}"), as_json)


Url = Annotated[str, flag(None, "URL", "The server.")]
Key = Annotated[
    str | None, flag(None, "KEY", "Of its administrator.", "--api-key", envvar="KVTROVE_ADMIN_KEY", show_envvar=True)
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, '.', '_' and '-'.")]
TenantFlag = Annotated[str | None, flag(None, "NAME", "Whose cache it lies in, where tenants have their own.")]
SaltFlag = Annotated[str | None, flag(None, "TEXT", "As requests send it.")]
CHECKPOINTS = "/v1/cache/checkpoints"
SERVER = "http://127.0.0.1:8000"
PATIENCE = 600.0  # seconds; a checkpoint may hold gigabytes


@cache.command(cls=Command)
def checkpoint(
    name: Name,
    request: Annotated[str | None, flag(None, "ID", "Of an unfinished answer: chatcmpl-...")] = None,
    prompt: Annotated[str | None, flag(None, "TEXT", "Instead: all that is cached of it.")] = None,
    session: Annotated[str | None, flag(None, "KEY", "Instead: the conversation with this prompt_cache_key.")] = None,
    archive: Annotated[
        str | None, flag(None, "FORMAT", "Smaller and lossy: int8, int4 or lowrank=0.5+int8; the price is shown.")
    ] = None,
    tenant: TenantFlag = None,
    cache_salt: SaltFlag = None,
    url: Url = SERVER,
    api_key: Key = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a running server keep a sequence as a file in its checkpoint directory."""
    body: dict[str, Any] = {"name": name, "request_id": request, "prompt": prompt, "session": session}
    body |= {"archive": archive, "tenant": tenant, "cache_salt": cache_salt}
    made = ask(url, CHECKPOINTS, api_key, body, PATIENCE)
    told = f"{name}: {_size(made['bytes'])}"
    if (price := made.get("price")) is not None:
        rows = f"{_size(price['row_bytes'])} of rows instead of {_size(price['exact_row_bytes'])}"
        told += f"; {rows}, keys and values are off by {price['error']:.2%}"
    _answer(made, told, as_json)


@cache.command(cls=Command)
def checkpoints(url: Url = SERVER, api_key: Key = None, as_json: JsonFlag = False) -> None:
    """List the checkpoints of a running server."""
    found = ask(url, CHECKPOINTS, api_key)["data"]
    lines = [f"{one['name']}: {_size(one['bytes'])}, {_day(one['created'])}" for one in found]
    _answer({"data": found}, "\n".join(lines) or "no checkpoints", as_json)


@cache.command(cls=Command)
def restore(
    name: Name,
    tenant: TenantFlag = None,
    cache_salt: SaltFlag = None,
    url: Url = SERVER,
    api_key: Key = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a running server bring a checkpoint back into its cache."""
    owner = {"tenant": tenant, "cache_salt": cache_salt}
    back = ask(url, f"{CHECKPOINTS}/{name}/restore", api_key, owner, PATIENCE)
    continues = "; the same request continues" if back["continues"] else ""
    told = f"{name}: {back['cached_tokens']:,} of {back['tokens']:,} tokens are cached{continues}"
    if back["archive"]:
        told += f" for requests with cache_salt {back['cache_salt']!r}; keys and values are off by {back['error']:.2%}"
    _answer(back, told, as_json)


@cache.command(cls=Command)
def compact(
    prompt: Annotated[str | None, typer.Argument(metavar="TEXT", help="The prefix.")] = None,
    file: Annotated[Path | None, flag(None, "FILE", "Instead: the text in it.")] = None,
    tenant: Annotated[str | None, flag(None, "NAME", "Whose cache it lies in, where tenants have their own.")] = None,
    url: Url = SERVER,
    api_key: Key = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a running server (--cache kvzip=0.3) compact a prefix once, for all requests that begin with it."""
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give either the text of the prefix or --file with it")
    text = prompt if file is None else file.read_text(encoding="utf-8")
    made = ask(url, "/v1/cache/compact", api_key, {"prompt": text, "tenant": tenant}, PATIENCE)
    told = f"{made['id']}: {made['tokens']:,} tokens in {made['blocks']:,} blocks of {made['blocks_before']:,}"
    _answer(made, told, as_json)


def _answer(figures: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        say(text)


def _moved(moved: Moved, what: str) -> str:
    others = {"were there already": moved.known, "damaged": moved.damaged, "did not fit": moved.no_room}
    left = "".join(f", {number:,} {why}" for why, number in others.items() if number)
    return f"{counted(moved.rows, 'row')}, {_size(moved.nbytes)} {what}{left}"


def _size(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            break
        nbytes /= 1024
    return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(min(seconds, 2**32)))
