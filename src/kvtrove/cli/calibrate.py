"""`kvtrove calibrate`: measure a model's attention on a text, for caches that need to know it."""

from __future__ import annotations

from typing import Annotated

import typer

from kvtrove.cli.options import ModelArgument, QuietFlag
from kvtrove.cli.output import check_folders
from kvtrove.cli.text import say
from kvtrove.config import parse_tokens
from kvtrove.names import find_model


def calibrate(
    model: ModelArgument,
    out: Annotated[str, typer.Option(metavar="FILE", help="The calibration, for --cache oscar=FILE.")],
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="UTF-8. Default: docstrings of Python's standard library.")
    ] = None,
    tokens: Annotated[str, typer.Option(metavar="N", help="Read at most N tokens of it.")] = "16k",
    quiet: QuietFlag = False,
) -> None:
    """Find the rotations of keys and values that a cache of 2 bits needs. Any text of the kind the model reads serves.

    Example: kvtrove calibrate my-model --text mine.txt --out mine.safetensors
    """
    from kvtrove.evaluate.calibrate import calibrate as measure
    from kvtrove.evaluate.calibrate import write
    from kvtrove.progress import loading

    check_folders(out)
    with loading(not quiet) as report:
        matrices = measure(str(find_model(model)), text, parse_tokens(tokens, "tokens"), report)
    digest = write(matrices, out)
    if not quiet:
        say(f"{len(matrices)} rotations, digest {digest[:16]}: serve with --cache oscar={out}")
