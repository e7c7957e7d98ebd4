"""`kvtrove explain`: what the second of two requests can reuse of the first, without a server and without a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtrove.cli.flags import setting
from kvtrove.cli.options import JsonFlag, OptionalModel
from kvtrove.cli.output import extra
from kvtrove.cli.text import percent, say, shown
from kvtrove.config import ConfigError, EngineConfig
from kvtrove.names import find_model

if TYPE_CHECKING:
    from kvtrove.server.reports import CacheReport
    from kvtrove.server.reports_place import Conversation
    from kvtrove.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Given:
    """One request as it was read."""

    model: str | None
    salt: str | None
    token_ids: list[int]
    conversation: Conversation


def explain(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="Body of the request that came first.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Body of the one that follows.")],
    model: OptionalModel = "demo",
    block_size: Annotated[int, setting("block_size", min=1)] = EngineConfig.block_size,
    as_json: JsonFlag = False,
) -> None:
    """Say where two requests part, and what the second one can reuse of the first.

    Example: kvtrove explain yesterday.json today.json ./my-model
    """
    try:
        from kvtrove.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(find_model(model))
        a, b = (_read(path, tokenizer) for path in (first, second))
        report = _compare(a, b, tokenizer, block_size)
    except ModuleNotFoundError as error:
        raise ConfigError(f"explain needs {error.name}, which is not installed: {extra('server')}") from error
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        _show(report)


def _read(path: Path, tokenizer: Tokenizer) -> _Given:
    """ConfigError names the file and what is wrong with it."""
    from pydantic import ValidationError

    from kvtrove.server.chat.folding import folded
    from kvtrove.server.reports import tool_names
    from kvtrove.server.reports_place import Conversation
    from kvtrove.server.routes.chat_input import conversation_of
    from kvtrove.server.routes.reports import ExplainRequest
    from kvtrove.text.capabilities import probe

    try:
        body = ExplainRequest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}".replace(": :", ":")) from error
    if (body.prompt is None) == (not body.messages):
        raise ConfigError(f"{path}: give the messages of a chat or one prompt, and not both")
    if body.prompt is None:
        if tokenizer.chat_template is None:
            raise ConfigError(f"{path}: this model has no chat template; compare prompts instead of messages")
        chat = conversation_of(body)
        text = folded(chat, probe(tokenizer.chat_template)).render(tokenizer.chat_template)
        ids = tokenizer.encode(text, add_special_tokens=False)
        return _Given(body.model, body.cache_salt, ids, Conversation(text, chat.messages, tool_names(body)))
    ids = body.prompt if isinstance(body.prompt, list) else tokenizer.encode(body.prompt)
    return _Given(body.model, body.cache_salt, ids, Conversation())


def _compare(a: _Given, b: _Given, tokenizer: Tokenizer, block_size: int) -> CacheReport:
    """The report that `b` would get if `a` were all that the cache holds."""
    from kvtrove.kv.reasons import Reason
    from kvtrove.server.reports import offline_report

    foreign = None
    if a.model != b.model:
        foreign = Reason.OTHER_MODEL_OR_CACHE_SPEC
    elif a.salt != b.salt:
        foreign = Reason.OTHER_TENANT
    return offline_report(tokenizer, (a.token_ids, b.token_ids), b.conversation, block_size, foreign)


def _show(report: CacheReport) -> None:
    total, reused = report["prompt_tokens"], report["reused_tokens"]
    say(f"{reused:,} of {total:,} prompt tokens can be reused ({percent(reused, total)}): {report['reason']}", "bold")
    found: Any = report["first_divergence"]
    if found is None:
        return
    where = f" in {found['where']}" if found["where"] else ""
    kind = f", which looks like a {found['volatile']}" if found["volatile"] else ""
    say(f"first difference at token {found['position']:,}{where}{kind}:")
    say(shown(f"  both    {found['before']!r}"))
    say(shown(f"  first   {found['earlier']!r}"))
    say(shown(f"  second  {found['here']!r}"))
