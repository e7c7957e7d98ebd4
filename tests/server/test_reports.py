"""Cache reports: on a real server what every request is told, and piece by piece how it is found out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from kvtrove.cli.main import app
from kvtrove.demo import demo_model_dir
from kvtrove.kv.reasons import Explanation, Reason
from kvtrove.request import RequestMetrics, SamplingParams
from kvtrove.server.auth import Tenant
from kvtrove.server.engine_thread import EngineRequest
from kvtrove.server.observer import Arrival, Departure, PromptResult
from kvtrove.server.protocol.chat import ChatRequest
from kvtrove.server.reports import CacheReport, Reports, conclude
from kvtrove.server.reports_place import Conversation, place, volatile
from kvtrove.server.reports_recent import Best, RecentPrompts, Remembered, as_tokens, common_prefix
from kvtrove.text.chat_template import ChatTemplate
from kvtrove.text.tokenizer import Tokenizer
from tests.server.conftest import ADMIN, ALICE, BOB, SHARED
from tests.server.live import LiveServer

SYSTEM = "You are a patient helper who answers in short sentences and never guesses. Say so when you do not know. " * 3
BLOCK = 32


@pytest.fixture
def fresh(server: LiveServer) -> None:
    server.wait_idle(ALICE)
    with server.client(ADMIN) as admin:
        admin.post("/v1/cache/clear").raise_for_status()


def chat(server: LiveServer, key: str, *messages: tuple[str, str], **fields: Any) -> CacheReport:
    with server.client(key) as client:
        body = {"model": "demo", "max_tokens": 2, "cache_report": True, **fields}
        body["messages"] = [{"role": role, "content": content} for role, content in messages]
        answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    report: CacheReport = answer["kvtrove"]["cache_report"]
    usage = answer["usage"]
    assert report["prompt_tokens"] == usage["prompt_tokens"]
    assert report["reused_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert report["computed_tokens"] == report["prompt_tokens"] - report["reused_tokens"]
    return report


# ---- on a real server ----


@pytest.mark.usefixtures("fresh")
def test_a_conversation_is_cold_then_full(server: LiveServer) -> None:
    salt = {"cache_salt": "conversation"}
    first = chat(server, ALICE, ("system", SYSTEM), ("user", "hello"), **salt)
    assert (first["reason"], first["reused_from"], first["first_divergence"]) == ("cold", {}, None)
    again = chat(server, ALICE, ("system", SYSTEM), ("user", "hello"), **salt)
    assert again["reason"] in ("full", "last_token_recomputed")
    assert again["reused_from"] == {"memory": again["reused_tokens"]}
    assert again["reused_tokens"] >= again["prompt_tokens"] - BLOCK


@pytest.mark.usefixtures("fresh")
def test_a_changed_message_is_named_with_both_sides(server: LiveServer) -> None:
    salt = {"cache_salt": "changed"}
    for animal in ("dogs", "fish"):
        report = chat(server, ALICE, ("system", SYSTEM), ("user", f"tell me of cats and of {animal}. {SYSTEM}"), **salt)
    assert report["reason"] == "diverged"
    found = report["first_divergence"]
    assert found is not None
    assert found["where"] == "messages[1]"
    assert found["before"].endswith("and of")
    assert found["here"].startswith(" fish")
    assert found["earlier"].startswith(" dogs")
    assert report["reused_tokens"] == found["position"] // BLOCK * BLOCK


@pytest.mark.usefixtures("fresh")
def test_a_date_in_the_system_prompt_is_found_and_logged(server: LiveServer) -> None:
    salt = {"cache_salt": "date"}
    chat(server, ALICE, ("system", f"Today is 2025-01-17. {SYSTEM}"), ("user", "hello"), **salt)
    report = chat(server, ALICE, ("system", f"Today is 2025-02-18. {SYSTEM}"), ("user", "hello"), **salt)
    found = report["first_divergence"]
    assert found is not None
    assert (found["where"], found["volatile"]) == ("system[0]", "date")
    assert report["reason"] == "diverged"
    assert "where a date stands: nothing behind it can be reused" in server.log.read_text()


@pytest.mark.usefixtures("fresh")
def test_what_was_evicted_is_told_with_its_age(server: LiveServer) -> None:
    salt = {"cache_salt": "evicted"}
    chat(server, ALICE, ("system", SYSTEM), ("user", "hello"), **salt)
    server.wait_idle(ALICE)
    with server.client(ADMIN) as admin:
        admin.post("/v1/cache/clear").raise_for_status()
    report = chat(server, ALICE, ("system", SYSTEM), ("user", "hello"), **salt)
    assert report["reason"] == "evicted"
    age = report.get("evicted_seconds_ago")
    assert age is not None
    assert 0 <= age < 60


@pytest.mark.usefixtures("fresh")
def test_the_header_asks_too_and_the_last_chunk_of_a_stream_tells(server: LiveServer) -> None:
    body = {"model": "demo", "prompt": SYSTEM, "max_tokens": 3, "stream": True, "cache_salt": "stream"}
    with server.client(ALICE) as client:
        text = client.post("/v1/completions", json=body, headers={"x-kvtrove-cache-report": "1"}).text
        silent = client.post("/v1/completions", json=body).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [("kvtrove" in event) for event in events] == [False] * (len(events) - 1) + [True], "only the last one"
    assert events[-1]["kvtrove"]["cache_report"]["reason"] == "cold"
    assert "cache_report" not in silent


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["chat/completions", "messages", "responses"])
def test_every_chat_api_tells(server: LiveServer, route: str, stream: bool) -> None:
    said = [{"role": "user", "content": f"hello {SYSTEM}"}]
    fields = {"responses": {"input": said, "max_output_tokens": 2}}.get(route, {"messages": said, "max_tokens": 2})
    body = {"model": "demo", "cache_report": True, "cache_salt": f"{route} {stream}", "stream": stream, **fields}
    with server.client(ALICE) as client:
        text = client.post(f"/v1/{route}", json=body).raise_for_status().text
    assert text.count('"cache_report":{"request_id":') == 1
    assert '"reason":"cold"' in text


@pytest.mark.usefixtures("fresh")
def test_every_prompt_of_a_batch_has_its_report(server: LiveServer) -> None:
    body = {"model": "demo", "prompt": ["short", SYSTEM], "max_tokens": 1, "cache_report": True, "cache_salt": "batch"}
    with server.client(ALICE) as client:
        reports = client.post("/v1/completions", json=body).raise_for_status().json()["kvtrove"]["cache_reports"]
    assert [report["reason"] for report in reports] == ["below_block_granularity", "cold"]


@pytest.mark.usefixtures("fresh")
def test_prompt_logprobs_are_the_reason_when_they_prevent_reuse(server: LiveServer) -> None:
    body = {"model": "demo", "prompt": SYSTEM, "max_tokens": 1, "cache_report": True, "cache_salt": "logprobs"}
    with server.client(ALICE) as client:
        client.post("/v1/completions", json=body).raise_for_status()
        answer = client.post("/v1/completions", json=body | {"echo": True, "logprobs": 1}).raise_for_status().json()
    assert answer["kvtrove"]["cache_report"]["reason"] == "prompt_logprobs"
    assert answer["kvtrove"]["cache_report"]["reused_tokens"] == 0


@pytest.mark.usefixtures("fresh")
def test_explain_answers_without_running(server: LiveServer) -> None:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "hello"}]
    body = {"model": "demo", "messages": messages, "cache_salt": "explain"}
    with server.client(ALICE) as client:

        def explain(request: Mapping[str, Any]) -> CacheReport:
            report: CacheReport = client.post("/v1/cache/explain", json=request).raise_for_status().json()
            return report

        before = client.get("/v1/cache/reports", params={"limit": 64}).json()
        assert explain(body)["reason"] == "cold"
        assert explain(body)["reason"] == "cold", "looking has put nothing into the cache"
        assert client.get("/v1/cache/reports", params={"limit": 64}).json() == before, "nor into the list"
        client.post("/v1/chat/completions", json=body | {"max_tokens": 1}).raise_for_status()
        assert explain(body)["reason"] in ("full", "last_token_recomputed")
        changed = explain(body | {"messages": [messages[0], {"role": "user", "content": f"goodbye. {SYSTEM}"}]})
    found = changed["first_divergence"]
    assert found is not None
    assert (changed["reason"], found["where"]) == ("diverged", "messages[1]")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
        {"prompt": []},
        {"prompt": ""},
        {"prompt": 3},
    ],
)
def test_explain_refuses_what_is_no_prompt(alice: httpx.Client, body: dict[str, Any]) -> None:
    answer = alice.post("/v1/cache/explain", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("first", "second"), [(ALICE, BOB), (SHARED[0], SHARED[1])])
def test_no_tenant_reads_of_another(server: LiveServer, first: str, second: str) -> None:
    """Shared tenants share blocks because they said so; the text of their prompts they do not."""
    secret = f"{SYSTEM} the password is swordfish, of {first}"
    chat(server, first, ("system", secret), ("user", "hello"))
    report = chat(server, second, ("system", SYSTEM), ("user", "hello"))
    assert "swordfish" not in json.dumps(report)
    assert report["first_divergence"] is None, "the only prompt that begins alike is the other tenant's"
    if second == BOB:
        assert report["reason"] == "cold"
    else:
        assert report["reused_tokens"] > 0
    with server.client(second) as client:
        listed = client.get("/v1/cache/reports", params={"limit": 64}).json()["data"]
        seen = client.post("/v1/cache/explain", json={"messages": [{"role": "system", "content": secret}]}).json()
    assert "swordfish" not in json.dumps([r["first_divergence"] and r["first_divergence"]["earlier"] for r in listed])
    assert seen["first_divergence"] is None or "swordfish" not in seen["first_divergence"]["earlier"]
    assert report in listed


def test_the_list_is_bounded_and_newest_first(server: LiveServer) -> None:
    with server.client(ALICE) as client:
        for i in range(3):
            body = {"model": "demo", "prompt": f"number {i}", "max_tokens": 1}
            client.post("/v1/completions", json=body, headers={"x-request-id": f"list-{i}"}).raise_for_status()
        listed = client.get("/v1/cache/reports", params={"limit": 2}).raise_for_status().json()
        assert [r["request_id"] for r in listed["data"]] == ["list-2", "list-1"]
        assert client.get("/v1/cache/reports", params={"limit": 0}).status_code == 400
    assert httpx.get(f"{server.url}/v1/cache/reports").status_code == 401


# ---- piece by piece ----


def prompt(*tokens: int, salt: str = "", client: str = "", complete: bool = True) -> Remembered:
    return Remembered("r", 0.0, salt, client, as_tokens(tokens), complete)


@pytest.mark.parametrize("at", [0, 1, 63, 64, 65, 319, 320, 999])
def test_common_prefix_finds_the_first_difference_wherever_it_is(at: int) -> None:
    a = np.arange(1000, dtype=np.int32)
    b = a.copy()
    b[at] = -1
    assert common_prefix(a, b) == common_prefix(b, a) == at
    assert common_prefix(a, a[:at]) == at


def test_the_best_earlier_prompt_is_the_longest_and_then_the_latest_of_the_same_salt() -> None:
    recent = RecentPrompts()
    prompts = [prompt(1, 2, 3), prompt(1, 2, 9), prompt(1, 2, 8), prompt(1, 2, 7, 6, salt="other")]
    for one in prompts:
        recent.add(one)
    assert recent.best(as_tokens([1, 2, 7, 6]), "") == Best(prompts[2], 2)
    assert recent.best(as_tokens([1, 2, 3, 6]), "") == Best(prompts[0], 3)
    assert recent.best(as_tokens([5]), "") is None


def test_the_memory_of_prompts_is_bounded_by_number_and_by_tokens() -> None:
    recent = RecentPrompts(max_prompts=3, max_tokens=10)
    for n in range(6):
        recent.add(prompt(n, n))
    assert len(recent) == 3
    recent.add(prompt(*range(9)))
    assert len(recent) == 1, "9 tokens leave no room for 2 more"
    recent.add(prompt(*range(50)))
    assert len(recent) == 1, "the newest one stays, however long"


BEFORE, AGE = 64, 1.5


@pytest.mark.parametrize(
    ("reason", "reused", "best", "expected"),
    [
        (Reason.COLD, 0, None, Reason.COLD),
        (Reason.COLD, 0, (40, 100, True), Reason.EVICTED),
        (Reason.COLD, 0, (40, 100, False), Reason.COLD),
        (Reason.COLD, 0, (8, 100, True), Reason.DIVERGED),
        (Reason.COLD, 0, (8, 8, True), Reason.BELOW_BLOCK_GRANULARITY),
        (Reason.DIVERGED, 64, (70, 100, True), Reason.DIVERGED),
        (Reason.DIVERGED, 64, (70, 70, True), Reason.FULL),
        (Reason.DIVERGED, 64, None, Reason.DIVERGED),
        (Reason.EVICTED, 64, (70, 70, True), Reason.EVICTED),
        (Reason.WINDOW_LOST, 0, (70, 70, True), Reason.WINDOW_LOST),
    ],
)
def test_the_reason_follows_from_cache_and_memory(
    reason: Reason, reused: int, best: tuple[int, int, bool] | None, expected: Reason
) -> None:
    """best: (common tokens, length of the earlier prompt, whether it was computed to its end)."""
    found = best and Best(prompt(*range(best[1]), complete=best[2]), best[0])
    assert conclude(Explanation(200, reused, reason), found or None, BLOCK) is expected


@pytest.mark.parametrize(
    ("before", "here", "earlier", "kind"),
    [
        ("Today is 2025-01-", "17. Be", "18. Be", "date"),
        ("on ", "March 3, be", "March 4, be", "date"),
        ("it is 12:", "30 now", "45 now", "time"),
        ("id 1b4e28ba-2fa1-11d2-883f-", "0016d3cca427", "0016d3cca428", "uuid"),
        ("x-nonce: ", "a8f5f167f44f4964", "b8f5f167f44f4964", "nonce"),
        ("request ", "17 of", "18 of", "counter"),
        ("tell me of ", "cats", "dogs", None),
        ("value ", "17", "seventeen", None),
        ("", "internationalisation", "internationalization", None),
    ],
)
def test_volatile_values_are_told_from_ordinary_changes(before: str, here: str, earlier: str, kind: str | None) -> None:
    assert volatile(before, here, earlier) == kind


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(demo_model_dir())


@pytest.mark.parametrize(
    ("word", "where"),
    [("alpha", "system[0]"), ("get_weather", "tools"), ("beta", "messages[1]"), ("gamma", "messages[3]")],
)
def test_a_position_is_named_by_its_message(tokenizer: Tokenizer, word: str, where: str) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "the alpha one"},
        {"role": "user", "content": "the beta one"},
        {"role": "assistant", "content": "the beta one", "tool_calls": [{"name": "get_weather"}]},
        {"role": "user", "content": "the gamma one"},
    ]
    text = "[system] the alpha one [tools] get_weather(city) "
    text += "[user] the beta one [assistant] the beta one [user] the gamma one [assistant]"
    ids = tokenizer.encode(text, add_special_tokens=False)
    position = next(i for i in range(len(ids)) if word in tokenizer.decode(ids[: i + 1]))
    conversation = Conversation(text, messages, ["get_weather"])
    assert place(tokenizer, conversation, as_tokens(ids), position) == where
    assert place(tokenizer, conversation, as_tokens(ids), len(ids) - 1) == "template"
    assert place(tokenizer, Conversation(), as_tokens(ids), position) is None


QWEN_STYLE = (
    "<|im_start|>system\n{{ messages[0].content }}\n# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% for m in messages[1:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
LLAMA_STYLE = (
    "<|system|>{{ messages[0].content }}<|end|><|user|>Use a tool:\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "{{ messages[1].content }}<|end|>{% for m in messages[2:] %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
)


@pytest.mark.parametrize("template", [QWEN_STYLE, LLAMA_STYLE])
@pytest.mark.parametrize(
    ("word", "where"),
    [("patient", "system[0]"), ("the town", "tools"), ("hello", "messages[1]"), ("bye", "messages[3]")],
)
def test_tools_are_told_from_messages_in_common_templates(
    tokenizer: Tokenizer, template: str, word: str, where: str
) -> None:
    function = {"name": "get_weather", "description": "of the town"}
    roles = {"system": SYSTEM, "user": "hello there", "assistant": "the patient one", "tool": "bye now"}
    messages = [{"role": role, "content": content} for role, content in roles.items()]
    text = ChatTemplate(template).render(messages, tools=[{"type": "function", "function": function}])
    ids = tokenizer.encode(text, add_special_tokens=False)
    position = next(i for i in range(len(ids)) if word in tokenizer.decode(ids[: i + 1], skip_special_tokens=False))
    conversation = Conversation(text, messages, ["get_weather"])
    assert place(tokenizer, conversation, as_tokens(ids), position) == where


def test_what_the_template_has_rewritten_is_not_guessed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a text in which nothing stands as it was sent", add_special_tokens=False)
    messages = [{"role": "user", "content": f"question {i}"} for i in range(10_000)]
    text = tokenizer.decode(ids)
    assert place(tokenizer, Conversation(text, messages), as_tokens(ids), 3) is None


@dataclass
class Client:
    """Sends prompts straight to an observer, as the server core would."""

    tokenizer: Tokenizer
    told: list[CacheReport] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.reports = Reports(self.tokenizer, BLOCK, on_report=self.told.append)

    def send(self, text: str, *, user: str | None = None, reason: Reason = Reason.COLD) -> Mapping[str, Any] | None:
        self.sent += 1
        ids = self.tokenizer.encode(text)
        request = EngineRequest(f"e{self.sent}", ids, SamplingParams(), text)
        body = ChatRequest.model_validate({"messages": [{"role": "user", "content": text}], "user": user})
        messages = ({"role": "user", "content": text},)
        arrival = Arrival(f"r{self.sent}", float(self.sent), "/", Tenant("t"), body, (request,), messages)
        self.reports.on_arrival(arrival)
        metrics = RequestMetrics(0.0, explanation=Explanation(len(ids), 0, reason))
        result = PromptResult(SamplingParams(), len(ids), output_token_ids={0: [5, 6]}, metrics=metrics)
        result.finish_reasons = ["stop"]
        return self.reports.on_departure(Departure(arrival, self.sent + 1.0, (result,)))


@pytest.fixture
def client(tokenizer: Tokenizer) -> Iterator[Client]:
    one = Client(tokenizer)
    yield one
    assert not one.reports._pending, "what has departed is forgotten"


def test_who_does_not_ask_gets_no_report_but_the_list_has_it(client: Client) -> None:
    assert client.send("a prompt") is None
    assert client.reports.of_tenant("t") == client.told != []
    assert client.reports.of_tenant("somebody else") == []


def test_a_warning_comes_once_per_client_and_kind(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    tail = " and then the rest of a long prompt that stays as it is, word by word, to its very end"
    with caplog.at_level(logging.WARNING, "kvtrove.server.reports"):
        for n, user in ((17, "a"), (18, "b"), (19, "a"), (20, "a"), (21, "b")):
            client.send(f"id {n} {tail}", user=user)
    facts = [record.__dict__["facts"]["request_id"] for record in caplog.records]
    assert facts == ["r3", "r5"], "the second of a and the second of b; r2 differs from another client's only"
    assert "17" not in caplog.text, "the log holds no text of a prompt"


def test_a_late_difference_is_no_reason_to_warn(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kvtrove.server.reports"):
        for n in (17, 18):
            client.send(f"a prompt that stays as it is, word by word, almost to its very end, which is {n}")
    assert not caplog.records


def test_the_page_explains_every_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cache-reports.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == [reason.value for reason in Reason]


# ---- two requests compared offline ----


def explain(folder: Path, *bodies: Any, flags: Sequence[str] = ("--json",)) -> str:
    paths = [folder / f"{i}.json" for i in range(len(bodies))]
    for path, body in zip(paths, bodies, strict=True):
        path.write_text(json.dumps(body))
    done = CliRunner().invoke(app, ["explain", *map(str, paths), *flags])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("changes", "reason", "reuses"),
    [
        ({}, ("full", "last_token_recomputed"), True),
        ({"messages": [("system", SYSTEM), ("user", f"goodbye {SYSTEM}")]}, ("diverged",), True),
        ({"messages": [("system", f"Hello. {SYSTEM}"), ("user", "hello")]}, ("diverged",), False),
        ({"model": "another"}, ("other_model_or_cache_spec",), False),
        ({"cache_salt": "another"}, ("other_tenant",), False),
    ],
)
def test_two_files_are_compared(tmp_path: Path, changes: Any, reason: tuple[str, ...], reuses: bool) -> None:
    def body(messages: Sequence[tuple[str, str]] = (("system", SYSTEM), ("user", "hello")), **fields: Any) -> Any:
        return {"model": "demo", "messages": [{"role": r, "content": c} for r, c in messages], **fields}

    report = json.loads(explain(tmp_path, body(), body(**changes)))
    assert report["reason"] in reason
    assert (report["reused_tokens"] > 0) is reuses


def test_the_comparison_reads_well(tmp_path: Path) -> None:
    bodies = [{"messages": [{"role": "system", "content": f"Today is 2025-01-{day}. {SYSTEM}"}]} for day in (17, 28)]
    text = explain(tmp_path, *bodies, flags=())
    assert "0 of" in text.splitlines()[0]
    assert "in system[0], which looks like a date" in text.splitlines()[1]


@pytest.mark.parametrize("body", [[], {}, {"messages": "hello"}])
def test_a_file_that_is_no_request_is_named(tmp_path: Path, body: Any) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(body))
    done = CliRunner().invoke(app, ["explain", str(path), str(path)])
    assert done.exit_code == 2
    assert "bad.json: " in done.output
