"""`kvtrove`: the table of commands, and how every one of them fails: one red line and an exit code.

Nothing here imports torch, so that `kvtrove --help` answers at once; a command imports the engine when it runs.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from kvtrove.cli.bench import bench
from kvtrove.cli.bench_engine import register
from kvtrove.cli.chat import chat
from kvtrove.cli.doctor import doctor
from kvtrove.cli.evaluate import evaluate
from kvtrove.cli.explain import explain
from kvtrove.cli.generate import generate
from kvtrove.cli.plan import plan
from kvtrove.cli.serve import serve
from kvtrove.cli.simulate import simulate
from kvtrove.config import ConfigError, Environment
from kvtrove.models.spec import ModelError
from kvtrove.request import RequestError

REFUSED = 2  # exit codes
INTERRUPTED = 130
BROKEN_PIPE = 1


class Commands(TyperGroup):
    """Turns what a command raises into an exit code. Errors of ours are the caller's to fix: no traceback."""

    def main(self, *args: Any, **settings: Any) -> Any:
        try:
            code = super().main(*args, **settings | {"standalone_mode": False})
            sys.stdout.flush()
        except (ConfigError, ModelError, RequestError) as error:
            code = _refuse(str(error), error)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
            code = BROKEN_PIPE
        except Exception as error:
            usage = getattr(error, "format_message", None)  # a wrong flag, as typer or the click below it reports it
            if usage is None:
                raise
            code = _refuse(usage())
        sys.exit(code or 0)


def _refuse(message: str, error: BaseException | None = None) -> int:
    if error is not None and logging.getLogger("kvtrove").isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    Console(stderr=True).print(Text("error: ", style="bold red") + Text(" ".join(message.split())), soft_wrap=True)
    return REFUSED


app = typer.Typer(cls=Commands, pretty_exceptions_enable=False, add_completion=False)
for command in (generate, chat, doctor, plan, simulate, serve, explain):
    app.command()(command)
app.command("eval")(evaluate)
register(bench)
app.add_typer(bench)


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
