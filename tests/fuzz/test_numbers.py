"""The fuzz of sampling fields, shortened: `python -m tests.fuzz.numbers` runs all of it."""

from __future__ import annotations

from tests.fuzz.numbers import BASES, BATCH, SINGLES, Fuzz, fields_of

ALONE = len(SINGLES) * len(BASES)
SEEDS = [*range(0, len(SINGLES), 2), *range(ALONE, ALONE + 160)]
"""Every second value alone, and pairs. What once failed is added here by its number."""


def test_extremes_alone_and_in_pairs_end_with_an_answer_or_a_refusal() -> None:
    fuzz = Fuzz()
    for first in range(0, len(SEEDS), BATCH):
        fuzz.run(SEEDS[first : first + BATCH])
    seen = fuzz.report()
    assert seen["ok"], seen
    assert seen["leaked_blocks"] == 0
    assert seen["answers"]["200"] > 50
    assert seen["answers"]["400"] > 50


def test_a_number_always_stands_for_the_same_request() -> None:
    assert repr(fields_of(ALONE + 5)) == repr(fields_of(ALONE + 5))
