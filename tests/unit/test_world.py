"""The demo model's world: the same stream for the same seed, facts that can be asked, and splits that share nothing."""

from __future__ import annotations

import pytest

from kvtrove.demo.prose import paragraphs
from kvtrove.demo.world import OPENINGS, RELATIONS, Split, World


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_seed_repeats_its_stream(split: Split) -> None:
    one, same = World(7, split), World(7, split)
    assert [(one.fact(), one.filler()) for _ in range(20)] == [(same.fact(), same.filler()) for _ in range(20)]
    assert World(7, split).fact() != World(8, split).fact()


@pytest.mark.parametrize("loose", [False, True])
def test_a_fact_can_be_answered_from_its_statement(loose: bool) -> None:
    world = World(1, "heldout", loose)
    for fact in (world.fact() for _ in range(200)):
        assert fact.value in fact.statement
        assert fact.value in fact.answer
        assert fact.value not in fact.question


def test_no_two_facts_of_a_world_are_about_the_same() -> None:
    world = World(2)
    keys = [world.fact().key for _ in range(300)]
    assert len(set(keys)) == len(keys)


def test_the_splits_share_no_pair_of_phrasings_and_no_prose() -> None:
    def pairs(split: Split) -> set[tuple[str, str]]:
        world = World(3, split)
        phrased = [world._pair(len(OPENINGS), len(RELATIONS[0].questions)) for _ in range(500)]
        return {(str(stated), str(asked)) for stated, asked in phrased}

    train, heldout = pairs("train"), pairs("heldout")
    assert not train & heldout
    assert len(train) + len(heldout) == len(OPENINGS) * len(RELATIONS[0].questions)
    assert not set(paragraphs("train")) & set(paragraphs("heldout"))
