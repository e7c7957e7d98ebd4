"""Text made from keys: equal keys give equal text, different keys differ within the first words.

Prefix caches compare text from its beginning, so synthetic prompts must share exactly what they are meant to share.

    text(key, n) = | key in base 64, one word per digit | words of a fixed random text, from where the key says |
                   |<------------ 6 words ------------->|<----------------- n - 6 words ---------------------->|
"""

from __future__ import annotations

from itertools import accumulate
from random import Random

# 64 common words, which most tokenizers store with their space as one token each.
EVERY_WORD = (
    "about after again air all also always and another any around as ask at away back be because before big "
    "boy but by call can change children city close come could country cut day did different do does down each "
    "earth eat end even every example eye face family far father few find first follow food "
    "for form four from full game gave get"
)
WORDS = tuple(EVERY_WORD.split())
KEY_WORDS = 6
NUM_KEYS = len(WORDS) ** KEY_WORDS  # 2**36

_TEXT_WORDS = 2**15
_MULTIPLIER = 0x9E3779B97  # odd, so that multiplying permutes the keys; near 2**36 / golden ratio, so neighbours part


class Words:
    """A vocabulary's worth of nonsense. seed: another one gives other text for every key."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        self._shift = random.randrange(NUM_KEYS)
        words = random.choices(WORDS, k=_TEXT_WORDS)
        self._text = " ".join(words) + " "
        self._starts = [0, *accumulate(len(word) + 1 for word in words)]  # of word i in the text; last: its length

    def text(self, key: int, count: int) -> str:
        """`count` words for a key in 0..NUM_KEYS-1; a shorter count gives a prefix of a longer one."""
        if not 0 <= key < NUM_KEYS:
            raise ValueError(f"key {key} is outside of 0..{NUM_KEYS - 1}")
        mixed = (key * _MULTIPLIER + self._shift) % NUM_KEYS
        head = [WORDS[(mixed >> 6 * digit) & 63] for digit in range(min(KEY_WORDS, count))]
        return " ".join(head) + self._filler(mixed % _TEXT_WORDS, count - KEY_WORDS)

    def _filler(self, start: int, count: int) -> str:
        """`count` words from word `start` on, round and round, each with its space in front."""
        parts = []
        while count > 0:
            end = min(start + count, _TEXT_WORDS)
            parts.append(" " + self._text[self._starts[start] : self._starts[end] - 1])
            count -= end - start
            start = 0
        return "".join(parts)
