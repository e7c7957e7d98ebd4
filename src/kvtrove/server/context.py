"""Does a prompt fit, and if not, what would: said in numbers, because a silent cut is what users hate most."""

from __future__ import annotations

from kvtrove.server.errors import refused

CODE = "context_length_exceeded"


def refuse_hopeless(num_characters: int, longest_token: int, context: int, param: str) -> None:
    """ApiError for a text that cannot fit however it is tokenised: to find that out exactly could take seconds."""
    least = num_characters // longest_token
    if least > context:
        length = f"{num_characters} characters, at least {least} tokens"
        raise refused(
            f"the context holds {context} tokens, and the prompt has {length}: shorten it to fit", param, CODE
        )


def refuse_unless_it_fits(num_tokens: int, max_tokens: int | None, context: int, limit: int | None, param: str) -> None:
    """ApiError 400 unless prompt and answer fit into `context` tokens, and the prompt into the server's `limit`.

    max_tokens: of the answer; None is whatever is left, at least one.
    """
    if limit is not None and num_tokens > limit:
        raise refused(f"{num_tokens} prompt tokens are more than the {limit} that this server takes", param, CODE)
    if num_tokens + (max_tokens or 1) <= context:
        return
    if max_tokens is not None and num_tokens < context:
        wanted = f"{num_tokens} prompt tokens and max_tokens {max_tokens} are {num_tokens + max_tokens}"
        remedy = f"lower max_tokens to {context - num_tokens}"
        if max_tokens < context:
            remedy += f", or shorten the prompt to {context - max_tokens} tokens"
    else:
        wanted = f"the prompt has {num_tokens}"
        remedy = f"shorten it to {max(context - (max_tokens or 1), 1)} tokens"
    raise refused(f"the context holds {context} tokens with the answer, and {wanted}: {remedy}", param, CODE)
