"""Talks with a trained model for twenty turns at a time and counts what goes right, on held-out facts and phrasings.

python training/judge.py MODEL [--conversations 20]            prints one JSON object
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

from kvtrove import LLM, SamplingParams
from kvtrove.cli.conversation import Conversation
from kvtrove.demo.world import Exchange, Fact, World

TURNS = 20
MOST_TOKENS = 48  # of an answer; the longest right one has fewer


def script(world: World) -> list[tuple[str, Exchange]]:
    """Twenty turns: (kind, what is said and what should be answered). Half of them ask, the rest tells and chats."""
    told: list[Fact] = []
    turns: list[tuple[str, Exchange]] = []
    while len(turns) < TURNS:
        number = len(turns)
        if number % 2 and told:
            fact = world.rng.choice(told)
            turns.append(("recall", (fact.question, fact.answer)))
        elif number % 4 == 0:
            told.append(world.fact())
            turns.append(("telling", (told[-1].statement, "")))
        else:
            turns.append(world.rng.choice((("small talk", world.small_talk()), ("arithmetic", world.arithmetic()))))
    return turns


def judge(llm: LLM, conversations: int) -> dict[str, object]:
    """Shares of right answers by kind, of turns that the model ended itself, of conversations without one mistake."""
    right, asked = Counter[str](), Counter[str]()
    ended = flawless = 0
    for seed in range(conversations):
        talk, flaws = Conversation(llm), 0
        for kind, (user, expected) in script(World(seed, "heldout")):
            prompt = talk.prompt(user)
            [result] = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=MOST_TOKENS), use_tqdm=False)
            [answer] = result.outputs
            talk.record(user, prompt, answer)
            ended += answer.finish_reason == "stop"
            asked[kind] += 1
            good = answer.finish_reason == "stop" and (kind == "telling" or answer.text.strip() == expected)
            right[kind] += good
            flaws += not good
        flawless += not flaws
    return {
        "turns": TURNS,
        "conversations": conversations,
        "right": {kind: right[kind] / count for kind, count in asked.items()},
        "ended": ended / sum(asked.values()),
        "flawless": flawless / conversations,
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--conversations", type=int, default=20)
    given = options.parse_args()
    print(json.dumps(judge(LLM(given.model, use_tqdm_on_load=False), given.conversations)))
