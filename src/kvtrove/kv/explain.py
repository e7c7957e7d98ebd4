"""Why was no more of a prompt reused? One reason of a closed list, from what the cache knows at admission.

Looks at one sequence's own key chain only, so it says nothing about other salts: no tenant learns what others sent.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from kvtrove.kv.compaction.shared import compacted_chains
from kvtrove.kv.reasons import Explanation, Reason
from kvtrove.kv.table import SequenceKV

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager


def explain(
    books: KVCacheManager, kv: SequenceKV, tokens: array[int], num_reused: int, limit: int, found: int, *, exact: bool
) -> Explanation:
    """Why `num_reused` of a prompt's `tokens` were reused and no more, right after a match within `limit`.

    found: tokens whose blocks the match had. exact: no compacted prefix was looked for. O(groups) where it is not set.
    COLD and DIVERGED stand for "nothing is known of the next block": whoever remembers earlier prompts can say more.
    """
    num_tokens, index, marks = len(tokens), books.index, books.marks
    age, chain = None, kv.chain
    size, dropped = chain.block_size, kv.dropped  # blocks count the places of tokens
    next_block = (num_reused - dropped) // size
    full_blocks = (num_tokens - dropped) // size
    if not index.enabled:
        reason = Reason.DISABLED
    elif limit < 1 < num_tokens:
        reason = Reason.PROMPT_LOGPROBS
    elif full_blocks == 0:
        reason = Reason.BELOW_BLOCK_GRANULARITY
    elif exact and _compacted(books, kv, tokens, limit) > num_reused:
        reason = Reason.EXACT_PREFIX
    elif limit < 1:  # the only token of the prompt is a block by itself, and is computed for its logits
        reason = Reason.LAST_TOKEN_RECOMPUTED
    elif next_block == full_blocks:
        reason = Reason.FULL
    elif found + dropped > num_reused:
        age = marks.age(chain, num_reused // size, found // size)
        reason = Reason.NO_STATE_CHECKPOINT if age is None else Reason.STATE_CHECKPOINT_EVICTED
    elif index.holds_any(chain.keys[next_block], chain.tokens[next_block]):
        reason = Reason.LAST_TOKEN_RECOMPUTED if (next_block + 1) * size > limit - dropped else Reason.WINDOW_LOST
    elif (age := index.evicted.age(chain.keys[next_block])) is not None:
        reason = Reason.EVICTED
    else:
        reason = Reason.DIVERGED if num_reused else Reason.COLD
    return Explanation(num_tokens, num_reused, reason, age)


def _compacted(books: KVCacheManager, kv: SequenceKV, tokens: array[int], limit: int) -> int:
    """Tokens of the longest compacted prefix that the exact `kv` could have gone on behind."""
    found = next(compacted_chains(books, kv.chain, tokens, min(limit, len(tokens)) // books.block_size), None)
    return 0 if found is None else found.dropped + found.kept
