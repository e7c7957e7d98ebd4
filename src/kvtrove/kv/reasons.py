"""Why a prompt was not reused further: the closed list of reasons, and what an explanation says. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """What ended the reuse of a prompt. docs/cache-reports.md says what to do about each."""

    FULL = "full"
    """Everything that could be reused was: the rest is new, or shorter than a block."""
    LAST_TOKEN_RECOMPUTED = "last_token_recomputed"
    """All of it is cached, but the last token's output is not: its block is computed again."""
    COLD = "cold"
    """Nothing that begins like this prompt was computed before."""
    DIVERGED = "diverged"
    """From a position on, no earlier prompt goes on like this one."""
    EVICTED = "evicted"
    """The next block was cached, and had to make room or was cleared."""
    WINDOW_LOST = "window_lost"
    """Some layers still hold the next block, others have lost the window that the next token reads."""
    NO_STATE_CHECKPOINT = "no_state_checkpoint"
    """The next block is cached, but no checkpoint of the running states was made there."""
    STATE_CHECKPOINT_EVICTED = "state_checkpoint_evicted"
    """The next block is cached, but the checkpoint of the running states had to make room."""
    BELOW_BLOCK_GRANULARITY = "below_block_granularity"
    """What is shared is shorter than one block, and only whole blocks are reused."""
    PROMPT_LOGPROBS = "prompt_logprobs"
    """Log-probabilities of the prompt, or a vector of all its tokens, were asked for: every position was computed."""
    EXACT_PREFIX = "exact_prefix"
    """A prefix that was compacted for all has more of it, and the request goes on behind none (`exact_prefix`)."""
    DISABLED = "disabled"
    """Prefix caching is off."""
    OTHER_TENANT = "other_tenant"
    """The two requests have different salts. Only a comparison of two given requests says so, never the server."""
    OTHER_MODEL_OR_CACHE_SPEC = "other_model_or_cache_spec"
    """The two requests name different models. Only a comparison of two given requests says so."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Token counts of a prompt. evicted_age: seconds since what was missing was evicted."""

    prompt_tokens: int
    reused_tokens: int
    reason: Reason
    evicted_age: float | None = None

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.reused_tokens
