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
    out: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="The calibration, for --cache oscar=FILE, lowrank=0.5@FILE, triattention=2048@FILE."
        ),
    ],
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="UTF-8. Default: docstrings of Python's standard library.")
    ] = None,
    tokens: Annotated[str, typer.Option(metavar="N", help="Read at most N tokens of it.")] = "16k",
    per_head: Annotated[
        bool,
        typer.Option("--per-head", help="A rotation for each head instead of one a layer; some MoE models need it."),
    ] = False,
    surrogate: Annotated[
        bool,
        typer.Option(
            "--surrogate", help="Fit a gate too, for --cache surrogate=0.3@FILE: the model has to repeat the text."
        ),
    ] = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure keys and values for caches of 2 bits and of low rank. Any text of the kind the model reads serves.

    Example: kvtrove calibrate my-model --text mine.txt --out mine.safetensors
    """
    from kvtrove.evaluate.calibrate import calibrate as measure
    from kvtrove.evaluate.calibrate import write
    from kvtrove.progress import loading

    check_folders(out)
    with loading(not quiet) as report:
        matrices = measure(str(find_model(model)), text, parse_tokens(tokens, "tokens"), report, per_head, surrogate)
    digest = write(matrices, out)
    if not quiet:
        words = f"oscar={out}, lowrank=0.5@{out} or triattention=2048@{out}"
        if surrogate:
            found = [float(one) for name in matrices if name.endswith(".correlation") for one in matrices[name]]
            words += f" or surrogate=0.3@{out}"
            average, least = sum(found) / len(found), min(found)
            say(f"gate: rank correlation with KVzip's scores, held out, {average:.2f}; of the worst head {least:.2f}")
        say(f"{len(matrices)} matrices, digest {digest[:16]}: serve with --cache {words}")
