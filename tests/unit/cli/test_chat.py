"""The chat without an engine: exact tokens of the past, counts, commands, and what ending early looks like."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtrove.cli.chat import Session
from kvtrove.cli.chat_view import JsonView, TextView, Totals, TurnStats
from kvtrove.cli.conversation import Conversation
from kvtrove.kv.stats import KVStats
from kvtrove.request import CompletionOutput, RequestError, RequestOutput, SamplingParams

END = 0  # the model's end token, written "#" by the template


class PairTokenizer:
    """Encodes two characters per token where it can. Drawn tokens hold one character each, so encoding an answer's
    text again never gives the tokens that were drawn: what any real tokenizer does now and then."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens, "the template writes the special tokens itself"
        return [int.from_bytes(text[i : i + 2].encode("latin-1"), "big") for i in range(0, len(text), 2)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(i.to_bytes(2 if i > 255 else 1, "big").decode("latin-1") for i in ids)


class FakeLLM:
    """Answers every prompt with the tokens in `answer`; `interrupt_after` that many of them Ctrl-C comes."""

    def __init__(self, max_model_len: int = 1000, trim: bool = False) -> None:
        self.tokenizer = PairTokenizer()
        self.trim = trim
        self.answer = "abc"
        self.finish_reason = "stop"
        self.interrupt_after: int | None = None
        self.num_cached = 0
        self.open_streams = 0
        kv = KVStats(10, 7, 3, 0, 0, 0, 0, 0, 0, None)
        self.llm_engine = SimpleNamespace(max_model_len=max_model_len, stats=lambda: SimpleNamespace(kv=kv))

    def get_tokenizer(self) -> PairTokenizer:
        return self.tokenizer

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        contents = [(m["role"][0], m["content"].strip() if self.trim else m["content"]) for m in messages]
        text = "".join(f"<{role}>{content}#" for role, content in contents) + "<a>"
        return {"prompt": text, "prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)}

    def stream(self, prompt: Mapping[str, Any], params: SamplingParams) -> Generator[RequestOutput, None, None]:
        self.open_streams += 1
        try:
            ids = prompt["prompt_token_ids"]
            drawn = [ord(c) for c in self.answer] + [END] * (self.finish_reason == "stop")
            for n in range(len(drawn) + 1):
                if n == self.interrupt_after:
                    raise KeyboardInterrupt
                reason = self.finish_reason if n == len(drawn) else None
                answer = CompletionOutput(0, self.answer[:n], drawn[:n], finish_reason=reason)  # type: ignore[arg-type]
                yield RequestOutput("0", prompt["prompt"], ids, [answer], reason is not None, self.num_cached)
        finally:
            self.open_streams -= 1


def session(llm: FakeLLM, view: Any = None, interactive: bool = True) -> Session:
    fake: Any = llm
    return Session(fake, SamplingParams(max_tokens=8), view or TextView(False), Conversation(fake), interactive)


def stopped(text: str) -> CompletionOutput:
    return CompletionOutput(0, text, [*map(ord, text), END], finish_reason="stop")


# ---- the exact tokens of the past ----


def test_the_past_is_a_prefix_of_the_next_prompt_token_by_token() -> None:
    llm = FakeLLM()
    chat = Conversation(llm)  # type: ignore[arg-type]
    first = chat.prompt("one")
    chat.record("one", first, stopped("abc"))
    second = chat.prompt("two")
    drawn = [ord(c) for c in "abc"]
    assert second["prompt"] == "<u>one#<a>abc#<u>two#<a>"
    assert second["prompt_token_ids"][: len(first["prompt_token_ids"]) + 3] == first["prompt_token_ids"] + drawn
    assert llm.tokenizer.decode(second["prompt_token_ids"]) == second["prompt"], "the end token is not there twice"


texts = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(texts, texts, st.sampled_from(["stop", "length"])), min_size=1, max_size=6))
def test_prompts_grow_from_what_is_in_the_cache_and_say_what_the_template_says(
    turns: list[tuple[str, str, str]],
) -> None:
    llm = FakeLLM()
    chat = Conversation(llm)  # type: ignore[arg-type]
    in_cache: list[int] = []
    for user, text, reason in turns:
        prompt = chat.prompt(user)
        assert prompt["prompt_token_ids"][: len(in_cache)] == in_cache
        assert llm.tokenizer.decode(prompt["prompt_token_ids"]) == prompt["prompt"]
        drawn = [ord(c) for c in text]
        answer = CompletionOutput(0, text, drawn + [END] * (reason == "stop"), finish_reason=reason)  # type: ignore[arg-type]
        chat.record(user, prompt, answer)
        in_cache = prompt["prompt_token_ids"] + drawn


def test_a_template_that_rewrites_the_past_is_encoded_as_it_says() -> None:
    llm = FakeLLM(trim=True)
    chat = Conversation(llm)  # type: ignore[arg-type]
    chat.record("one", chat.prompt("one"), stopped("abc  "))
    prompt = chat.prompt("two")
    assert prompt["prompt"] == "<u>one#<a>abc#<u>two#<a>"
    assert prompt["prompt_token_ids"] == llm.tokenizer.encode(prompt["prompt"], add_special_tokens=False)


def test_undo_reset_and_system() -> None:
    chat = Conversation(FakeLLM(), system="s")  # type: ignore[arg-type]
    first = chat.prompt("one")
    chat.record("one", first, stopped("abc"))
    chat.record("two", chat.prompt("two"), stopped("abc"))
    assert chat.undo()
    assert chat.prompt("2")["prompt"] == "<s>s#<u>one#<a>abc#<u>2#<a>"
    assert chat.undo()
    assert chat.prompt("one") == first
    assert not chat.undo()
    chat.record("one", first, stopped("abc"))
    chat.reset()
    chat.system = None
    assert chat.prompt("one")["prompt"] == "<u>one#<a>"


def test_a_new_system_prompt_encodes_everything_again() -> None:
    llm = FakeLLM()
    chat = Conversation(llm, system="s")  # type: ignore[arg-type]
    chat.record("one", chat.prompt("one"), stopped("abc"))
    chat.system = "t"
    prompt = chat.prompt("two")
    assert prompt["prompt"] == "<s>t#<u>one#<a>abc#<u>two#<a>"
    assert prompt["prompt_token_ids"] == llm.tokenizer.encode(prompt["prompt"], add_special_tokens=False)


# ---- a session ----


def test_a_turn_prints_the_answer_once_and_the_line_of_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM()
    llm.num_cached = 4
    session(llm).take("hi")
    answer, line = capsys.readouterr().out.strip().splitlines()
    assert answer == "abc"
    assert line.startswith("turn 1: 5 prompt tokens, 4 reused (80 %), 1 computed, 0.0")
    assert line.endswith("s to first token")


def test_the_machine_readable_turn(capsys: pytest.CaptureFixture[str]) -> None:
    chat = session(FakeLLM(), JsonView())
    chat.take("hi")
    chat.summary()
    turn, summary = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert turn.pop("seconds") >= turn.pop("seconds_to_first_token") >= 0
    assert turn == {
        "turn": 1,
        "user": "hi",
        "answer": "abc",
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "output_tokens": 4,
        "finish_reason": "stop",
    }
    assert summary["summary"] == {"turns": 1, "prompt_tokens": 5, "cached_tokens": 0, "output_tokens": 4}
    assert (summary["cache"]["cached"], summary["cache"]["free"]) == (3, 7)


def test_ctrl_c_keeps_what_was_said_and_closes_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM()
    chat = session(llm)
    llm.interrupt_after = 3
    chat.take("one")
    assert llm.open_streams == 0
    assert [turn.answer for turn in chat.conversation.turns] == ["ab"]
    assert chat.stats[0].finish_reason == "abort"
    assert "stopped; the answer so far stays in the conversation" in capsys.readouterr().out
    assert chat.conversation.prompt("two")["prompt"] == "<u>one#<a>ab#<u>two#<a>"


def test_ctrl_c_ends_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM()
    llm.interrupt_after = 2
    with pytest.raises(KeyboardInterrupt):
        session(llm, interactive=False).run(["one", "two"])
    assert llm.open_streams == 0


def test_ctrl_c_before_the_first_token_leaves_the_conversation_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM()
    chat = session(llm)
    llm.interrupt_after = 0
    chat.take("one")
    assert not chat.conversation.turns
    assert not chat.stats
    assert "your message is not part of the conversation" in capsys.readouterr().out


def test_a_full_context_is_refused_with_its_counts_and_nothing_is_cut() -> None:
    llm = FakeLLM(max_model_len=12)
    chat = session(llm)
    chat.take("one")
    with pytest.raises(RequestError, match=r"has 20 tokens, the context holds 12 with the answer; /undo .* /reset"):
        chat.take("a longer message")
    assert [turn.user for turn in chat.conversation.turns] == ["one"]


@pytest.mark.parametrize(
    ("max_model_len", "message"),
    [(1000, "the answer was cut at --max-tokens 8"), (8, "context full: the answer was cut at 8")],
)
def test_an_answer_that_was_cut_says_by_what(
    capsys: pytest.CaptureFixture[str], max_model_len: int, message: str
) -> None:
    llm = FakeLLM(max_model_len)
    llm.finish_reason = "length"
    session(llm).take("hi")  # 5 tokens of prompt, 3 of answer
    assert message in capsys.readouterr().out


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    chat = session(FakeLLM())
    chat.run(["/undo", "one", "/system be brief", "two", "", "/undo", "/stats", "/help", "/reset", "/quit", "three"])
    out = capsys.readouterr().out
    assert "there is no turn to take back" in out
    assert chat.conversation.system == "be brief"
    assert len(chat.stats) == 2, "nothing was asked after /quit, and an empty line asks nothing"
    assert "2 turns: " in out
    assert "cache: 10 blocks, 0 used, 3 cached, 7 free" in out
    assert all(name in out for name in chat.commands)
    assert not chat.conversation.turns


def test_an_unknown_command_is_reported_at_the_keyboard_and_an_error_in_a_script(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat = session(FakeLLM())
    chat.run(["/rest", "hi"])
    assert "/rest is no command" in capsys.readouterr().out
    assert len(chat.stats) == 1
    with pytest.raises(RequestError, match="/rest is no command"):
        session(FakeLLM(), interactive=False).run(["/rest"])


def test_totals_of_no_turn() -> None:
    assert Totals.of([]).line() == "0 turns: 0 prompt tokens, 0 reused (0 %), 0 computed; 0 answered"


def test_the_line_of_the_cache_counts_in_thousands() -> None:
    stats = TurnStats(1412, 1384, 10, 0.123, 1.0, "stop")
    assert stats.line() == "1,412 prompt tokens, 1,384 reused (98 %), 28 computed, 0.12 s to first token"
