"""Does a prompt fit, and if not, what would: said in numbers, because a silent cut is what users hate most.

Clients look for phrases: LiteLLM for "this model's maximum context length is", LangChain and Anthropic's for "prompt is
too long". Whoever finds one shortens the conversation, so an answer that is asked to be too long must not say either.
"""

from __future__ import annotations

from kvtrove.server.errors import ApiError, refused

CODE = "context_length_exceeded"


def refuse_hopeless(num_characters: int, longest_token: int, context: int, param: str) -> None:
    """ApiError for a text that cannot fit however it is tokenised: to find that out exactly could take seconds."""
    least = num_characters // longest_token
    if least > context:
        raise _too_long(f"{num_characters} characters, at least {least} tokens", context, context, param)


def refuse_unless_it_fits(
    num_tokens: int, max_tokens: int | None, context: int, limit: int | None, param: str, limit_param: str
) -> None:
    """ApiError 400 unless prompt and answer fit into `context` tokens, and the prompt into the server's `limit`.

    max_tokens: of the answer, 0 where there is none; None is whatever is left, at least one. param, limit_param: the
    fields of the request that hold the prompt and max_tokens.
    """
    if limit is not None and num_tokens > limit:
        raise _too_long(f"{num_tokens} tokens", limit, context, param)
    answer = 1 if max_tokens is None else max_tokens
    if num_tokens + min(answer, 1) > context:
        most = context - answer
        raise _too_long(f"{num_tokens} tokens", most if most > 0 else context - 1, context, param)
    if max_tokens is not None and num_tokens + max_tokens > context:
        wanted = f"{num_tokens} prompt tokens and {limit_param} {max_tokens} are {num_tokens + max_tokens}"
        remedy = f"lower {limit_param} to {context - num_tokens}"
        if max_tokens < context:
            remedy += f", or shorten the prompt to {context - max_tokens} tokens"
        text = f"{limit_param}: the context holds {context} tokens with the answer, and {wanted}: {remedy}"
        raise refused(text, limit_param)


def _too_long(length: str, most: int, context: int, param: str) -> ApiError:
    text = (
        f"prompt is too long: {length} > {most} maximum. This model's maximum context length is {context} tokens, "
        f"answer included. Please reduce the length of the {param}."
    )
    return refused(text, param, CODE)
