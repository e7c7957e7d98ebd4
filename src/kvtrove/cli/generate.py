"""`kvtrove generate`: complete prompts and print the results."""

from __future__ import annotations

import json as json_format
import sys
import time
from typing import Annotated, Any

import typer

from kvtrove.cli.flags import spread
from kvtrove.cli.options import CHAT, COMPLETION, EngineOptions, JsonFlag, ModelArgument, QuietFlag, SamplingOptions
from kvtrove.cli.text import counted, reuse, shown
from kvtrove.config import ConfigError
from kvtrove.request import RequestError, RequestOutput, TokenLogprobs


@spread
def generate(
    model: ModelArgument,
    sampling: SamplingOptions,
    engine: EngineOptions,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="`-` is all of stdin as one prompt.")
    ] = None,
    file: Annotated[str | None, typer.Option(metavar="FILE", help="Prompts, one per line; `-` is stdin.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", metavar="N", help="Outputs per prompt.")] = 1,
    beam_width: Annotated[int, typer.Option(metavar="N", help="Beam search with N beams; 0 samples.")] = 0,
    length_penalty: Annotated[
        float, typer.Option(metavar="X", help="Beams are ranked by logprob / length ** X.")
    ] = 1.0,
    logprobs: Annotated[
        int | None, typer.Option(metavar="N", help="With --json: the N likeliest per output token.")
    ] = None,
    prompt_logprobs: Annotated[
        int | None, typer.Option(metavar="N", help="With --json: the N likeliest per prompt token.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Each prompt is a message, in the model's own format.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Complete one prompt or many.

    Example: kvtrove generate demo --chat "My name is Clara." --temperature 0
    """
    texts = [sys.stdin.read() if text == "-" else text for text in prompts or []] + _lines(file)
    if not texts:
        raise RequestError(
            "no prompt: give one after MODEL, or --file FILE with one per line, or - for stdin", "prompt"
        )
    params = sampling.params(
        model,
        COMPLETION | ({name: CHAT[name] for name in ("temperature", "top_p")} if chat else {}),
        n=n,
        beam_width=beam_width,
        length_penalty=length_penalty,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )
    llm = engine.load(model, quiet)
    start = time.monotonic()
    asked = [llm.chat_prompt([{"role": "user", "content": text}]) for text in texts] if chat else texts
    results = llm.generate(asked, params, use_tqdm=not quiet)
    seconds = time.monotonic() - start
    for index, result in enumerate(results):
        typer.echo(
            json_format.dumps(as_json(index, result), ensure_ascii=False) if json else _as_text(result, len(results))
        )
    if not quiet and not json:
        typer.echo(_summary(results, seconds), err=True)
        if not chat and llm.get_tokenizer().chat_template is not None:
            typer.echo("note: this model can chat; --chat puts a prompt into its format", err=True)


def _lines(file: str | None) -> list[str]:
    """The prompts in a file: every line that is not blank."""
    if file is None:
        return []
    try:
        if file == "-":
            text = sys.stdin.read()
        else:
            with open(file, encoding="utf-8") as stream:
                text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--file: cannot read {file}: {reason}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise RequestError(f"--file: {'stdin' if file == '-' else file} holds no prompt; write one per line", "prompt")
    return lines


def _as_text(result: RequestOutput, num_prompts: int) -> str:
    """Only the output for one prompt with one output; otherwise each output below what it continues."""
    if num_prompts == 1 and len(result.outputs) == 1:
        return shown(result.outputs[0].text)
    lines = [f"> {shown(result.prompt or '')}"]
    lines += [f"[{output.index}] {shown(output.text)}" for output in result.outputs]
    return "\n".join(lines) + "\n"


def _summary(results: list[RequestOutput], seconds: float) -> str:
    tokens_in = sum(len(r.prompt_token_ids) for r in results)
    reused = sum(r.num_cached_tokens for r in results)
    tokens_out = sum(len(o.token_ids) for r in results for o in r.outputs)
    return f"{counted(len(results), 'prompt')}: {reuse(tokens_in, reused)}; {tokens_out:,} generated in {seconds:.2f} s"


def as_json(index: int, result: RequestOutput) -> dict[str, Any]:
    """A result as plain data; logprobs are one {token id: {logprob, rank, token}} per position."""
    return {
        "index": index,
        "prompt": result.prompt,
        "prompt_token_ids": result.prompt_token_ids,
        "num_cached_tokens": result.num_cached_tokens,
        "outputs": [
            {
                "index": output.index,
                "text": output.text,
                "token_ids": output.token_ids,
                "finish_reason": output.finish_reason,
                "stop_reason": output.stop_reason,
                "cumulative_logprob": output.cumulative_logprob,
                "logprobs": None if output.logprobs is None else [_logprobs(entry) for entry in output.logprobs],
            }
            for output in result.outputs
        ],
        "prompt_logprobs": None
        if result.prompt_logprobs is None
        else [_logprobs(entry) for entry in result.prompt_logprobs],
    }


def _logprobs(entry: TokenLogprobs | None) -> dict[int, dict[str, Any]] | None:
    if entry is None:
        return None
    return {token: {"logprob": p.logprob, "rank": p.rank, "token": p.decoded_token} for token, p in entry.items()}
