"""`kvtrove`: the table of commands, and how every one of them fails: one red line and an exit code.

A command's file is imported when that command is asked for, and none of them imports torch before it runs: `kvtrove
plan` pays for no other command, and `kvtrove --help` for none: what it says of each stands here.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from kvtrove.cli.command import HELP_NAMES, Command
from kvtrove.config import ConfigError, Environment, nearest
from kvtrove.models.spec import ModelError
from kvtrove.request import EngineError, RequestError

FAILED = 1  # exit codes
REFUSED = 2
INTERRUPTED = 130
BROKEN_PIPE = 1
COMMANDS = {
    "chat": "Talk to a model.",
    "generate": "Complete one prompt or many.",
    "serve": "Serve a model over HTTP, as OpenAI's API does.",
    "top": "Show a server's throughput, cache and requests.",
    "pull": "Download a model from Hugging Face.",
    "models": "Models on this machine.",
    "plan": "Show what fits, and the command that starts it.",
    "doctor": "Show what slows inference down on this machine.",
    "explain": "Say where two requests part, and what is reused.",
    "simulate": "Replay a recorded load through caches of any size.",
    "bench": "Measure an engine, its kernels or a server.",
    "cache": "List, verify, clear, export or import a disk tier.",
    "convert": "Write a checkpoint with fewer kv heads.",
    "calibrate": "Find the rotations that a cache of 2 bits needs.",
    "eval": "Compare caches with the exact one.",
}
"""Command -> what the list of commands says of it."""
FILES = {"eval": "evaluate"}
"""Command -> the file of `kvtrove.cli` and what it defines there, a function or a Typer with commands of its own; the
command's own name where it is not here.
"""
OTHER_NAMES = {"run": "chat"}
"""What other programs call a command of ours."""


class Commands(TyperGroup):
    """Turns what a command raises into an exit code. Errors of ours are the caller's to fix: no traceback."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The list of commands, none of which is imported for it."""
        loaded = self.commands
        self.commands = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items()}
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = loaded

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, imported now; None when there is none of that name."""
        cmd_name = OTHER_NAMES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS | OTHER_NAMES:
            ctx.fail(f"No such command {args[0]!r}{nearest(args[0], COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **settings: Any) -> Any:
        try:
            code = super().main(*args, **settings | {"standalone_mode": False})
            sys.stdout.flush()
        except (ConfigError, ModelError, RequestError) as error:
            code = _refuse(str(error), error)
        except EngineError as error:
            code = _refuse(str(error), error) and FAILED
        except KeyboardInterrupt:
            code = INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
            code = BROKEN_PIPE
        except Exception as error:
            usage = getattr(error, "format_message", None)  # a wrong flag, as typer or the click below it reports it
            if usage is None:
                raise
            code = _refuse(usage() + _number_that_works(error) + _example(error))
        sys.exit(code or 0)


def _load(name: str) -> Any:
    file = FILES.get(name, name)
    found = getattr(import_module(f"kvtrove.cli.{file}"), file)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False)
    alone.command(name, cls=Command)(found)
    return typer.main.get_command(alone)


def _number_that_works(error: Exception) -> str:
    """For a flag that takes a number and got something else: its default, or one of its kind."""
    param = getattr(error, "param", None)
    kind = str(getattr(getattr(param, "type", None), "name", ""))
    default = getattr(param, "default", None)
    known = isinstance(default, int | float) and not isinstance(default, bool)
    number = default if known else {"int": 4, "integer": 4, "float": 0.5}.get(kind.removesuffix(" range"))
    return "" if number is None else f" Give a number, such as {number}."


def _example(error: Exception) -> str:
    """For a command without something it needs: the example of its help."""
    if type(error).__name__ != "MissingParameter":  # typer's, or that of the click below it
        return ""
    text = getattr(getattr(getattr(error, "ctx", None), "command", None), "help", None) or ""
    example = text.partition("Example: ")[2].partition("\n")[0].strip()
    return f" Example: {example}" if example else ""


def _refuse(message: str, error: BaseException | None = None) -> int:
    from rich.console import Console
    from rich.text import Text

    if error is not None and logging.getLogger("kvtrove").isEnabledFor(logging.DEBUG):
        import traceback

        traceback.print_exception(error)
    Console(stderr=True).print(Text("error: ", style="bold red") + Text(" ".join(message.split())), soft_wrap=True)
    return REFUSED


app = typer.Typer(cls=Commands, pretty_exceptions_enable=False, context_settings=HELP_NAMES)


def _version(wanted: bool) -> None:
    if wanted:
        from kvtrove import __version__

        typer.echo(f"kvtrove {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def kvtrove(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An LLM inference engine built around its KV cache."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("kvtrove").setLevel(Environment.read().log.upper())
