"""IncrementalDetokenizer against decoding the whole, and against a naive search for stop strings."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvtrove.text.detokenizer import IncrementalDetokenizer
from kvtrove.text.tokenizer import Tokenizer
from tests.unit.text.built_tokenizers import BUILDERS, build, byte_level_ids

KINDS = list(BUILDERS)
SENTENCEPIECE = ["SentencePiece", "SentencePiece, Metaspace", "SentencePiece, no prefix"]
BROKEN = "\ufffd"
UNICODE = st.lists(
    st.one_of(
        st.sampled_from("ab  .\n▁"),
        st.sampled_from([" the", "🙂", "👩\u200d👩\u200d👧", "🇩🇪", "e\u0301", "你好", "한", "ไทย", "ß", "\U0001d518"]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
).map("".join)


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(build(kind))


def groups(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """ids cut into groups of these sizes, over and over."""
    cut, rest = [], ids
    while rest:
        size = sizes[len(cut) % len(sizes)]
        cut.append(rest[:size])
        rest = rest[size:]
    return cut


def shown_after_each(detokenizer: IncrementalDetokenizer, pushes: list[list[int]]) -> list[str]:
    shown = []
    for ids in pushes:
        detokenizer.push(ids)
        shown.append(detokenizer.text)
    detokenizer.finish()
    return [*shown, detokenizer.text]


def only_grows(shown: list[str]) -> bool:
    return all(later.startswith(earlier) for earlier, later in pairwise(["", *shown]))


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@given(text=UNICODE, sizes=SIZES)
@example(text="한글 🙂🙃 Größe", sizes=[1])
def test_pieces_join_to_what_decode_gives(kind, text, sizes):
    ids = tokenizer(kind).encode(text, add_special_tokens=False)
    shown = shown_after_each(IncrementalDetokenizer(tokenizer(kind), []), groups(ids, sizes))
    assert only_grows(shown)
    assert shown[-1] == tokenizer(kind).decode(ids)
    if BROKEN not in shown[-1]:
        assert not any(BROKEN in earlier for earlier in shown), "part of a character was shown"


@pytest.mark.parametrize("kind", KINDS)
@given(text=UNICODE, sizes=SIZES)
def test_grouping_makes_no_difference_once_a_group_is_over(kind, text, sizes):
    ids = tokenizer(kind).encode(text, add_special_tokens=False)
    one_by_one = shown_after_each(IncrementalDetokenizer(tokenizer(kind), []), [[i] for i in ids])
    grouped = shown_after_each(IncrementalDetokenizer(tokenizer(kind), []), groups(ids, sizes))
    ends = [sum(map(len, groups(ids, sizes)[: n + 1])) for n in range(len(groups(ids, sizes)))]
    assert grouped == [*(one_by_one[end - 1] for end in ends), one_by_one[-1]]


@given(st.lists(st.one_of(st.binary(max_size=12), st.integers(0, 430)), max_size=12))
def test_any_ids_of_a_byte_level_tokenizer_join_to_what_decode_gives(parts):
    """Bytes that are no UTF-8 too, in long runs, and ids that no token has."""
    t = tokenizer("byte-level")
    ids = [i for p in parts for i in ([p] if isinstance(p, int) else byte_level_ids(t.backend, p))]
    shown = shown_after_each(IncrementalDetokenizer(t, []), [[i] for i in ids])
    assert only_grows(shown)
    assert shown[-1] == t.decode(ids)


@pytest.mark.parametrize("num_broken", range(4, 30))
@pytest.mark.parametrize("broken", [b"\xff", b"\xe4\xbd", b"\xf0\x9f\x98"])
def test_a_character_after_many_broken_bytes_is_whole(broken, num_broken):
    """However many bytes are given up as no text, none is taken that a character needs."""
    t = tokenizer("byte-level")
    text = (broken * num_broken)[:num_broken] + "🙂é".encode()
    ids = byte_level_ids(t.backend, text)
    shown = shown_after_each(IncrementalDetokenizer(t, []), [[i] for i in ids])
    assert only_grows(shown)
    assert shown[-1] == text.decode(errors="replace") == t.decode(ids)
    assert shown[-1].endswith("🙂é")


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@given(st.data())
def test_any_ids_with_whole_characters_in_bytes_join_to_what_decode_gives(kind, data):
    whole = st.characters(exclude_categories=["Cs"]).map(lambda c: [3 + byte for byte in c.encode()])
    word = st.integers(259, tokenizer(kind).vocab_size - 1).map(lambda i: [i])
    ids = [i for part in data.draw(st.lists(st.one_of(whole, word), max_size=25)) for i in part]
    shown = shown_after_each(IncrementalDetokenizer(tokenizer(kind), []), [[i] for i in ids])
    assert only_grows(shown)
    assert shown[-1] == tokenizer(kind).decode(ids)


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@given(st.data())
def test_broken_bytes_of_a_byte_fallback_tokenizer_never_take_text_back(kind, data):
    ids = data.draw(st.lists(st.one_of(st.integers(3, 258), st.integers(0, 300)), max_size=60))
    shown = shown_after_each(IncrementalDetokenizer(tokenizer(kind), []), [[i] for i in ids])
    assert only_grows(shown)
    expected = tokenizer(kind).decode(ids)
    assert shown[-1].replace(BROKEN, "") != "" or expected.replace(BROKEN, "") == "", "text was lost"


def test_what_a_broken_run_of_byte_tokens_looks_like():
    ids = [3 + byte for byte in "é".encode() + b"\xe4" + "é".encode()]
    t = tokenizer("SentencePiece")
    assert t.decode(ids) == BROKEN * 5
    shown = shown_after_each(IncrementalDetokenizer(t, []), [[i] for i in ids])
    assert shown == ["", "é", "é", "é", "é", "é" + BROKEN * 3]


@pytest.mark.parametrize("kind", KINDS)
@given(text=UNICODE, split=st.integers(0, 60))
def test_output_is_what_it_adds_to_its_prompt(kind, text, split):
    t = tokenizer(kind)
    ids = t.encode(text, add_special_tokens=False)
    prompt, output = ids[:split], ids[split:]
    before, both = t.decode(prompt), t.decode(ids)
    if BROKEN in both or not both.startswith(before) or before.endswith(BROKEN):
        return  # the prompt ends inside a character, or in a byte that belongs to a run
    shown = shown_after_each(IncrementalDetokenizer(t, prompt), [[i] for i in output])
    assert before + shown[-1] == both


@pytest.mark.parametrize("kind", ["SentencePiece", "SentencePiece, Metaspace"])
def test_the_space_of_the_first_token(kind):
    t = tokenizer(kind)
    [the] = t.encode("the", add_special_tokens=False)
    assert t.token_text(the) == " the"
    bytes_of_a_character = [3 + byte for byte in "中".encode()]
    for prompt, expected in [
        ([], "the"),  # nothing before: as decode gives it
        ([1], "the"),  # special tokens are no text
        (t.encode("quick"), " the"),
        ([*t.encode("quick"), 2, 1], " the"),
        (bytes_of_a_character, " the"),
        (bytes_of_a_character[:2], " the"),
    ]:
        detokenizer = IncrementalDetokenizer(t, prompt)
        detokenizer.push([the])
        assert detokenizer.text == expected


def test_special_tokens():
    t = tokenizer("byte-level")
    ids = t.encode("a<|im_end|>b<tool_call>", add_special_tokens=False)
    assert shown_after_each(IncrementalDetokenizer(t, []), [ids])[-1] == "ab<tool_call>"
    kept = IncrementalDetokenizer(t, [], skip_special_tokens=False)
    assert shown_after_each(kept, [ids])[-1] == "a<|im_end|>b<tool_call>"


def test_special_and_unknown_tokens_between_words_keep_the_space():
    t = tokenizer("SentencePiece")
    the, quick = t.encode("the quick", add_special_tokens=False)
    ids = [the, 2, 2, t.vocab_size + 7, quick]
    assert shown_after_each(IncrementalDetokenizer(t, []), [[i] for i in ids])[-1] == t.decode(ids) == "the quick"


# ---- stop strings ----


def naive(t: Tokenizer, ids: list[int], stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """After every token whose text is whole, look for every stop string in all of the text."""
    for count in [*range(1, len(ids)), None]:
        text = t.decode(ids[:count])
        if count is not None and text.endswith(BROKEN):
            continue
        places = [(text.index(s), -len(s), s) for s in stop if s in text]
        if places:
            at, _, found = min(places)
            return text[: at + len(found) if include else at], found
    return t.decode(ids), None


def without_beginnings(text: str, stop: tuple[str, ...]) -> str:
    """text less its longest end that may become a stop string."""
    lengths = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return text[: len(text) - max(lengths, default=0)]


FEW = st.text(st.sampled_from("ab é🙂"), max_size=25)
STOPS = st.lists(st.text(st.sampled_from("ab é🙂"), min_size=1, max_size=5), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece", "SentencePiece, no prefix"])
@given(text=FEW, stop=STOPS, include=st.booleans())
def test_stop_strings_equal_a_naive_search(kind, text, stop, include):
    t = tokenizer(kind)
    ids = t.encode(text, add_special_tokens=False)
    expected, found = naive(t, ids, stop, include)
    detokenizer = IncrementalDetokenizer(t, [], stop=stop, include_stop=include)
    everything = IncrementalDetokenizer(t, [])
    shown: list[str] = []
    for i in ids:
        everything.push([i])
        if detokenizer.push([i]) is None:
            assert detokenizer.text == without_beginnings(everything.text, stop)
        shown.append(detokenizer.text)
    assert detokenizer.stopped_by == found
    detokenizer.finish()
    shown.append(detokenizer.text)
    assert only_grows(shown), "text was taken back"
    assert (detokenizer.text, detokenizer.stopped_by) == (expected, found)


def push_characters(stop: tuple[str, ...], text: str, **options) -> IncrementalDetokenizer:
    detokenizer = IncrementalDetokenizer(tokenizer("byte-level"), [], stop=stop, **options)
    for character in text:
        detokenizer.push(tokenizer("byte-level").encode(character, add_special_tokens=False))
    return detokenizer


def test_the_first_of_several_stop_strings_wins_and_of_several_at_one_place_the_longest():
    t = tokenizer("byte-level")
    [the] = t.encode(" the", add_special_tokens=False)
    for stop, text, found in [
        (("e", "t"), " ", "t"),
        (("t", "th", "the"), " ", "the"),
        (("h", " th", " t"), "", " th"),
    ]:
        detokenizer = IncrementalDetokenizer(t, [], stop=stop)
        assert detokenizer.push([the]) == found
        assert detokenizer.text == text


def test_text_that_only_began_like_a_stop_string_is_shown_again():
    detokenizer = push_characters(("</end>",), "x</en")
    assert detokenizer.text == "x"
    detokenizer.push(tokenizer("byte-level").encode("</end", add_special_tokens=False))
    assert detokenizer.text == "x</en"
    detokenizer.finish()
    assert detokenizer.text == "x</en</end"
    assert detokenizer.stopped_by is None


def test_a_character_that_completes_a_stop_string_only_at_the_end():
    t = tokenizer("byte-level")
    ids = t.encode("ok🙂", add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(t, [], stop=("k" + BROKEN,))
    detokenizer.push(ids[:-1])
    assert detokenizer.text == "o"
    detokenizer.finish()
    assert (detokenizer.text, detokenizer.stopped_by) == ("o", "k" + BROKEN)


@pytest.mark.parametrize(
    ("min_tokens", "text"), [(0, "a"), (1, "a"), (2, "aba"), (3, "aba"), (5, "ababa"), (9, "ababab")]
)
def test_stop_strings_in_the_first_tokens_do_not_count(min_tokens, text):
    detokenizer = push_characters(("b",), "ababab", min_tokens=min_tokens)
    detokenizer.finish()
    assert detokenizer.text == text


def test_a_stop_string_that_begins_in_the_first_tokens_does_not_count():
    assert push_characters(("bc", "cd"), "abcd", min_tokens=2).text == "ab"
    assert push_characters(("bc",), "abcbc", min_tokens=2).text == "abc"
    assert push_characters(("bcd",), "abc", min_tokens=2).text == "abc", "what was shown would be held back"


# ---- forks, cost ----


@given(UNICODE, st.integers(0, 40), STOPS)
def test_a_copy_goes_its_own_way(text, at, stop):
    t = tokenizer("byte-level")
    ids = t.encode(text, add_special_tokens=False)
    original = IncrementalDetokenizer(t, [], stop=stop)
    original.push(ids[:at])
    fork = original.copy()
    fork.push(t.encode("xyz🙂", add_special_tokens=False))
    fork.finish()
    alone = IncrementalDetokenizer(t, [], stop=stop)
    alone.push(ids[:at])
    assert original.text == alone.text
    assert shown_after_each(original, [ids[at:]]) == shown_after_each(alone, [ids[at:]])


class Counting(Tokenizer):
    decoded = 0

    def decode(self, ids, *, skip_special_tokens=True):
        self.decoded += len(ids)
        return super().decode(ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece"])
@pytest.mark.parametrize("text", ["words and words ", "🙂你好", "\xff"])
def test_the_cost_of_a_token_does_not_grow(kind, text):
    t = Counting(build(kind))
    ids = t.encode(text * 40, add_special_tokens=False)
    if text == "\xff":  # a byte that is never UTF-8, over and over
        ids = [t.encode(text, add_special_tokens=False)[-1]] * 400
    costs = []
    for part in (ids, ids * 4):
        t.decoded = 0
        IncrementalDetokenizer(t, []).push(part)
        costs.append(t.decoded / len(part))
    assert costs[1] < 1.2 * costs[0] + 1
    assert costs[1] < 60


def test_special_tokens_can_be_shown_one_by_one() -> None:
    """Marks by which calls are told reach their parser; other special tokens stay hidden."""
    own = tokenizer("byte-level")
    first, second = sorted(own.special_ids)[:2]
    text = own.encode("a", add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(own, [], shown=(first,))
    detokenizer.push([*text, first, *text, second])
    detokenizer.finish()
    assert detokenizer.text == "a" + own.decode([first], skip_special_tokens=False) + "a"
