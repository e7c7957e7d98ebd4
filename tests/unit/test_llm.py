"""LLM over a fake engine: what goes in, in which order results come out, and that nothing is left behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtrove import llm as llm_module
from kvtrove.config import ConfigError, EngineConfig
from kvtrove.llm import LLM, uninterrupted
from kvtrove.progress import BatchBar
from kvtrove.prompts import read_prompts
from kvtrove.request import CompletionOutput, RequestError, RequestOutput, SamplingParams

REFUSED = 99  # the fake engine refuses a prompt that holds this token


class FakeTemplate:
    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        self.options = options
        return "".join(f"<{m['role'][0]}>{m['content']}" for m in messages) + "<a>" * options["add_generation_prompt"]


class FakeTokenizer:
    """One token per character; a text gets a leading 1 as special token."""

    def __init__(self) -> None:
        self.chat_template: FakeTemplate | None = FakeTemplate()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(c) for c in text]


class FakeEngine:
    """Every step draws token `100 * first prompt token + position` for each request; shorter ones finish earlier.

    on_step: called in the middle of a step, for interrupts. Requests leave when they finish or are aborted.
    """

    def __init__(self, config: object = None, *, progress: object = None) -> None:
        self.config, self.progress = config or EngineConfig("no-such-model"), progress
        self.tokenizer = FakeTokenizer()
        self.running: dict[str, tuple[list[int], SamplingParams, str | None, list[int]]] = {}
        self.seen: list[tuple[list[int], str | None, str]] = []
        self.on_step = lambda: None
        self.is_waiting = False
        self.steps_completed = 0

    def add(
        self, request_id: str, ids: Sequence[int], params: SamplingParams, *, prompt: str | None = None, salt: str = ""
    ) -> None:
        if REFUSED in ids:
            raise RequestError("prompt: token id 99 is refused", "prompt")
        self.seen.append((list(ids), prompt, salt))
        self.running[request_id] = (list(ids), params, prompt, [])

    def abort(self, request_id: str) -> bool:
        return self.running.pop(request_id, None) is not None

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def step(self) -> list[RequestOutput]:
        outputs = []
        for request_id, (ids, params, prompt, drawn) in list(self.running.items()):
            drawn.append(100 * ids[0] + len(drawn))
            finished = len(drawn) >= (params.max_tokens or 8)
            if finished:
                del self.running[request_id]
            if finished or params.output_kind != "final_only":
                answer = CompletionOutput(
                    0, "x" * len(drawn), list(drawn), finish_reason="length" if finished else None
                )
                outputs.append(RequestOutput(request_id, prompt, ids, [answer], finished))
        self.on_step()
        self.steps_completed += 1
        return outputs

    def reset_prefix_cache(self) -> int:
        return 7


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def llm(engine: FakeEngine) -> LLM:
    return LLM.from_engine(engine)  # type: ignore[arg-type]


def first_tokens(results: list[RequestOutput]) -> list[int]:
    return [r.outputs[0].token_ids[0] for r in results]


# ---- prompts ----


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("hi", [([1, 104, 105], "hi", "")]),
        (["a", "b"], [([1, 97], "a", ""), ([1, 98], "b", "")]),
        ([5, 6, 7], [([5, 6, 7], None, "")]),
        ((5, 6), [([5, 6], None, "")]),
        ([[5, 6], [7]], [([5, 6], None, ""), ([7], None, "")]),
        ({"prompt": "a"}, [([1, 97], "a", "")]),
        ({"prompt_token_ids": [5]}, [([5], None, "")]),
        ({"prompt_token_ids": [5], "cache_salt": "team"}, [([5], None, "team")]),
        ({"prompt": "a", "prompt_token_ids": [5]}, [([5], "a", "")]),
        (["a", [5], {"prompt": "b", "cache_salt": "s"}], [([1, 97], "a", ""), ([5], None, ""), ([1, 98], "b", "s")]),
        ([], []),
        ([[]], [([], None, "")]),
    ],
)
def test_every_form_of_prompt(prompts: Any, expected: list[tuple[list[int], str | None, str]]) -> None:
    read = read_prompts(prompts, FakeTokenizer())
    assert [(p.token_ids, p.text, p.salt) for p in read] == expected


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (3, "prompts: cannot read int as a prompt"),
        (None, "prompts: cannot read NoneType as a prompt"),
        (["a", 1.5], r"prompts\[1\]: cannot read float as a prompt"),
        ([["a"]], r"prompts\[0\]: cannot read list as a prompt"),
        ([5, "a"], r"prompts\[0\]: cannot read int as a prompt"),
        ([True, False], r"prompts\[0\]: cannot read bool as a prompt"),
        ({"promt": "a"}, r"unknown key 'promt' \(did you mean 'prompt'\?\)"),
        ({"cache_salt": "s"}, "give 'prompt' \\(text\\) or 'prompt_token_ids'"),
        ({"prompt": 5}, "give 'prompt' \\(text\\)"),
        ({"prompt": "a", "cache_salt": 5}, "cache_salt must be a string, not int"),
        ({"prompt_token_ids": [1, "a"]}, "prompt_token_ids: cannot read list as a prompt"),
    ],
)
def test_an_unreadable_prompt_is_named(prompts: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_prompts(prompts, FakeTokenizer())


# ---- generate ----


def test_results_come_in_the_order_of_the_prompts_not_of_finishing(llm: LLM) -> None:
    lengths = [5, 1, 3]
    results = llm.generate([[2], [3], [4]], [SamplingParams(max_tokens=n) for n in lengths])
    assert first_tokens(results) == [200, 300, 400]
    assert [len(r.outputs[0].token_ids) for r in results] == lengths
    assert all(r.finished for r in results)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=20))
def test_one_result_per_prompt_whatever_the_lengths(lengths: list[int]) -> None:
    engine = FakeEngine()
    prompts = [[i + 2] for i in range(len(lengths))]
    results = LLM.from_engine(engine).generate(prompts, [SamplingParams(max_tokens=n) for n in lengths])  # type: ignore[arg-type]
    assert [(r.prompt_token_ids, len(r.outputs[0].token_ids)) for r in results] == list(
        zip(prompts, lengths, strict=True)
    )
    assert not engine.running


def test_default_parameters_are_those_of_vllm(llm: LLM) -> None:
    [result] = llm.generate("a")
    assert len(result.outputs[0].token_ids) == 16 == SamplingParams().max_tokens


def test_no_prompts_no_results(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_parameters_must_match_the_prompts(llm: LLM, engine: FakeEngine) -> None:
    with pytest.raises(RequestError, match="sampling_params: 1 for 2 prompts"):
        llm.generate(["a", "b"], [SamplingParams()])
    assert engine.seen == []


def test_salt_and_text_reach_the_engine(llm: LLM, engine: FakeEngine) -> None:
    llm.generate({"prompt": "a", "cache_salt": "team"})
    assert engine.seen == [([1, 97], "a", "team")]


def test_a_refused_prompt_leaves_no_request_behind(llm: LLM, engine: FakeEngine) -> None:
    with pytest.raises(RequestError, match="99 is refused"):
        llm.generate([[2], [3], [REFUSED], [4]])
    assert len(engine.seen) == 2, "two were added before the refusal, none after it"
    assert not engine.running
    assert first_tokens(llm.generate([[5]])) == [500], "and the engine goes on"


def test_a_failing_step_leaves_no_request_behind(llm: LLM, engine: FakeEngine) -> None:
    def fail() -> None:
        raise OSError("device lost")

    engine.on_step = fail
    with pytest.raises(OSError, match="device lost"):
        llm.generate([[2], [3]])
    assert not engine.running


def test_an_engine_that_loses_a_request_is_an_error_not_a_hang(llm: LLM, engine: FakeEngine) -> None:
    engine.on_step = engine.running.clear
    with pytest.raises(RuntimeError, match="requests without a result"):
        llm.generate([[2]], SamplingParams(max_tokens=3))


# ---- Ctrl-C ----


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_generate_after_the_step_and_aborts_all(llm: LLM, engine: FakeEngine) -> None:
    engine.on_step = press_ctrl_c
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[2], [3]], SamplingParams(max_tokens=5))
    assert engine.steps_completed == 1, "the step was not left half-way"
    assert not engine.running
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_gets_through_at_once() -> None:
    reached = []

    def stubborn() -> None:
        with uninterrupted():
            press_ctrl_c()
            reached.append("after the first")
            press_ctrl_c()
            reached.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        stubborn()
    assert reached == ["after the first"]


def test_uninterrupted_works_outside_the_main_thread() -> None:
    ran = []

    def work() -> None:
        with uninterrupted():
            ran.append(threading.current_thread().name)

    thread = threading.Thread(target=work, name="other")
    thread.start()
    thread.join()
    assert ran == ["other"]


# ---- stream ----


def test_a_stream_is_cumulative_and_ends_finished(llm: LLM) -> None:
    states = list(llm.stream([2], SamplingParams(max_tokens=3)))
    assert [s.outputs[0].token_ids for s in states] == [[200], [200, 201], [200, 201, 202]]
    assert [s.finished for s in states] == [False, False, True]


def test_closing_a_stream_aborts_its_request(llm: LLM, engine: FakeEngine) -> None:
    stream = llm.stream([2])
    next(stream)
    assert len(engine.running) == 1
    stream.close()
    assert not engine.running


def test_a_stream_that_was_never_started_adds_nothing(llm: LLM, engine: FakeEngine) -> None:
    llm.stream([2]).close()
    assert engine.seen == []


def test_streams_and_generate_may_interleave(llm: LLM) -> None:
    one, two = llm.stream([2], SamplingParams(max_tokens=4)), llm.stream([3], SamplingParams(max_tokens=4))
    next(one), next(two)
    assert first_tokens(llm.generate([[4]])) == [400]
    assert [s.outputs[0].token_ids[-1] for s in one] == [201, 202, 203], "every state exactly once, none lost"
    assert [s.outputs[0].token_ids[-1] for s in two][-1] == 303


# ---- chat ----


def test_chat_renders_without_special_tokens_added_twice(llm: LLM, engine: FakeEngine) -> None:
    llm.chat([{"role": "user", "content": "hi"}])
    assert engine.seen[0][:2] == ([ord(c) for c in "<u>hi<a>"], "<u>hi<a>")


def test_chat_takes_one_conversation_or_many(llm: LLM) -> None:
    one = [{"role": "user", "content": "a"}]
    assert len(llm.chat(one)) == 1
    assert [r.prompt for r in llm.chat([one, [*one, {"role": "assistant", "content": "b"}]])] == [
        "<u>a<a>",
        "<u>a<a>b<a>",
    ]


def test_chat_options_reach_the_template(llm: LLM, engine: FakeEngine) -> None:
    tools = [{"type": "function"}]
    llm.chat(
        [{"role": "assistant", "content": "so"}],
        continue_final_message=True,
        tools=tools,
        chat_template_kwargs={"enable_thinking": False},
    )
    assert engine.seen[0][1] == "<a>so", "a message to be continued gets no generation prompt"
    template = engine.tokenizer.chat_template
    assert template is not None
    assert template.options == {
        "add_generation_prompt": False,
        "continue_final_message": True,
        "tools": tools,
        "enable_thinking": False,
    }


def test_chat_without_template_or_messages_is_refused(llm: LLM, engine: FakeEngine) -> None:
    with pytest.raises(RequestError, match="messages: the conversation is empty"):
        llm.chat([])
    engine.tokenizer.chat_template = None
    with pytest.raises(RequestError, match=r"no chat template; use generate\(\)"):
        llm.chat([{"role": "user", "content": "hi"}])


# ---- construction ----


def test_ignored_vllm_settings_are_logged_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(llm_module, "Engine", FakeEngine)
    with caplog.at_level(logging.WARNING, "kvtrove"):
        llm = LLM("demo", enforce_eager=True, gpu_memory_utilization=0.5, tensor_parallel_size=1, max_model_len="4k")
    [record] = caplog.records
    assert "enforce_eager, gpu_memory_utilization, tensor_parallel_size" in record.getMessage()
    assert llm.llm_engine.config.max_model_len == 4096


def test_nothing_is_logged_when_nothing_is_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(llm_module, "Engine", FakeEngine)
    LLM("demo", dtype="bfloat16", use_tqdm_on_load=False)
    assert not caplog.records


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'max_model_length' \(did you mean 'max_model_len'\?\)"):
        LLM("dir", max_model_length=5)


def test_the_engine_is_within_reach(llm: LLM, engine: FakeEngine) -> None:
    tokenizer: object = llm.get_tokenizer()
    assert tokenizer is engine.tokenizer
    assert llm.reset_prefix_cache() == 7


# ---- progress ----


class Terminal:
    """A stderr that says it is one."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


@pytest.mark.parametrize(("enabled", "elapsed", "drawn"), [(True, 2.0, True), (False, 2.0, False), (True, 0.1, False)])
def test_the_bar_shows_on_a_terminal_when_wanted_and_worth_it(
    monkeypatch: pytest.MonkeyPatch, enabled: bool, elapsed: float, drawn: bool
) -> None:
    terminal, now = Terminal(), [0.0]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    with BatchBar(4, enabled, clock=lambda: now[0]) as bar:
        now[0] = elapsed
        bar.finished(tokens_in=3000, tokens_out=64)
        bar.refresh()
    assert ("1/4" in terminal.text and "in 1,500 tokens/s, out 32 tokens/s" in terminal.text) is drawn
    assert bool(terminal.text) is drawn


def test_no_bar_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with BatchBar(4, True, clock=iter([0.0, 9.0, 9.0, 9.0]).__next__) as bar:
        bar.finished(1, 1)
        bar.refresh()
    assert capsys.readouterr().err == ""


def test_a_closed_engine_gives_its_memory_back_and_takes_nothing_more() -> None:
    """In a process of its own, whose size nobody else changes: five engines, each of which held 64 MiB of cache."""
    script = """
        import json
        from kvtrove import LLM, SamplingParams
        from kvtrove.demo import demo_model_dir
        from kvtrove.plan.process import resident_bytes
        from kvtrove.request import EngineError
        held = []
        for round in range(5):
            with LLM(str(demo_model_dir()), kv="64MiB", use_tqdm_on_load=False) as llm:
                llm.llm_engine.runner.arena.rows.fill_(1)
                llm.generate(["hi"], SamplingParams(max_tokens=2), use_tqdm=False)
                full = resident_bytes()
            held.append((full, resident_bytes()))
        llm.close()
        try:
            llm.generate(["hi"], use_tqdm=False)
        except EngineError as error:
            print(json.dumps([held, str(error)]))
    """
    ran = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True, check=True)
    held, error = json.loads(ran.stdout)
    assert error == "the engine is closed"
    assert all(full - after > 60 * 2**20 for full, after in held)
    assert held[-1][1] < held[0][1] * 1.05
