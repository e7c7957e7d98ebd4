"""Tokens of answers as they were drawn: found for the same text and the same owner, and never another text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.demo import demo_model_dir
from kvtrove.server.chat.recent_answers import ENTRY, RecentAnswers
from kvtrove.text.tokenizer import Tokenizer
from tests.unit.text.built_tokenizers import BUILDERS, build

PROMPT, ANSWER, REST = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a long answer", "<|im_end|>\nGo on"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(demo_model_dir())


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token a letter, as hardly any tokenizer would cut the text."""
    return [token for letter in text for token in tokenizer.encode(letter, add_special_tokens=False)]


def test_an_answer_keeps_its_tokens(tokenizer: Tokenizer) -> None:
    answers = RecentAnswers(tokenizer)
    prompt, drawn = tokenizer.encode(PROMPT), letters(tokenizer, ANSWER)
    assert drawn != tokenizer.encode(ANSWER)
    answers.remember("me", PROMPT, prompt, drawn)
    rest = tokenizer.encode(REST)
    assert answers.encode("me", PROMPT + ANSWER + REST) == ([*prompt, *drawn, *rest], len(drawn))
    assert answers.encode("me", PROMPT + ANSWER) == ([*prompt, *drawn], len(drawn))
    assert answers.encode("you", PROMPT + ANSWER + REST) is None, "another owner"
    for other in (PROMPT + "A" + ANSWER[1:] + REST, PROMPT[1:] + ANSWER + REST, PROMPT + ANSWER[:-1], PROMPT):
        assert answers.encode("me", other) is None, "another text"


def test_the_longest_past_counts(tokenizer: Tokenizer) -> None:
    answers = RecentAnswers(tokenizer)
    prompt, drawn = tokenizer.encode(PROMPT), letters(tokenizer, ANSWER)
    answers.remember("me", PROMPT, prompt, drawn)
    found = answers.encode("me", PROMPT + ANSWER + REST)
    assert found is not None
    then = letters(tokenizer, "more")
    answers.remember("me", PROMPT + ANSWER + REST, found[0], then)
    assert answers.encode("me", PROMPT + ANSWER + REST + "more" + REST) == (
        [*found[0], *then, *tokenizer.encode(REST)],
        len(then),
    )


def test_memory_is_bounded_and_the_latest_stay(tokenizer: Tokenizer) -> None:
    answers = RecentAnswers(tokenizer, max_tokens=10 * ENTRY)
    for n in range(50):
        answers.remember("me", f"{n}:", letters(tokenizer, f"{n}:"), letters(tokenizer, "abcdefgh"))
    kept = [n for n in range(50) if answers.encode("me", f"{n}:abcdefgh")]
    assert kept == list(range(50 - len(kept), 50))
    assert 0 < len(kept) < 10, "each takes memory beside its tokens"
    answers.clear()
    assert answers.encode("me", "49:abcdefgh") is None
    for n in kept:
        answers.remember("me", f"{n}:", letters(tokenizer, f"{n}:"), letters(tokenizer, "abcdefgh"))
    answers.remember("me", "x", [5], [6] * 10 * ENTRY)
    assert [n for n in range(50) if answers.encode("me", f"{n}:abcdefgh")] == kept, "what is too large harms nobody"


@pytest.mark.parametrize("kind", list(BUILDERS))
@given(st.text("ab \nßé🙂", min_size=1, max_size=12), st.text("ab \nßé🙂", max_size=12))
def test_what_is_found_is_the_same_text(kind: str, answer: str, rest: str) -> None:
    """Also with tokenizers that put a space before every text: those go without."""
    tokenizer = Tokenizer(build(kind))
    answers = RecentAnswers(tokenizer)
    prompt = tokenizer.encode("ab", add_special_tokens=False)
    drawn = tokenizer.encode(answer, add_special_tokens=False)
    text = "ab" + tokenizer.decode_after(prompt, drawn)
    answers.remember("me", "ab", prompt, drawn)
    found = answers.encode("me", text + rest)
    if found is not None:
        assert "ab" + tokenizer.decode_after(prompt, found[0][len(prompt) :]) == text + rest
