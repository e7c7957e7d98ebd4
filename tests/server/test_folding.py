"""What templates make of conversations, and how conversations are folded until nothing of them is lost."""

from __future__ import annotations

from typing import Any

import pytest

from kvtrove.server.chat.conversation import Conversation
from kvtrove.server.chat.detect import detect_syntax
from kvtrove.server.chat.folding import dropped_in_silence, folded, short_id
from kvtrove.text.capabilities import CALL, TOOL, Capabilities, probe
from kvtrove.text.chat_template import ChatTemplate
from tests.unit.text.chat_templates import CHATML, GEMMA, LLAMA_3, MISTRAL, QWEN

FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
NO_SYSTEM = GEMMA.replace("{%- if messages[0]['role'] == 'system' -%}", "{%- if messages[0]['role'] == 'system' -%}"
    "{{ raise_exception('System role not supported') }}{%- elif false -%}")  # fmt: skip
LAST_SYSTEM = "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}" \
    "{% set ns.s = m.content %}{% endif %}{% endfor %}{{ ns.s }}" \
    "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}" \
    "{% endif %}{% endfor %}"  # fmt: skip
PARTS = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}#{% endfor %}"  # noqa: E501
NULL_CONTENT = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}{% for c in m.tool_calls %}"
    "CALL {{ c.function.name }} {{ c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
TEXT_ARGUMENTS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '>>>' + c.function.name + '\\n' + c.function.arguments }}{% endfor %}{% endfor %}"
)
NO_RESULTS = NO_SYSTEM
TEMPLATES = {
    "ChatML": CHATML, "Llama 3": LLAMA_3, "Mistral": MISTRAL, "Qwen": QWEN, "Gemma": GEMMA, "one system first": FIRST,
    "no system": NO_SYSTEM, "last system": LAST_SYSTEM, "parts": PARTS, "null content": NULL_CONTENT,
    "arguments as text": TEXT_ARGUMENTS,
}  # fmt: skip


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


ASKS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": CALL["id"], "content": "Rain."}
CONVERSATIONS = {
    "two leading systems": [system("Alpha."), system("Beta."), user("Hi.")],
    "a later system": [system("Alpha."), user("Hi."), answer("Yes."), system("Beta."), user("Go.")],
    "a system at the end": [user("Hi."), answer("Yes."), system("Beta.")],
    "two users": [user("One."), user("Two."), answer("Three."), user("Four.")],
    "a result and words": [user("Hi."), ASKS, RESULT, user("And now?")],
    "a call and its result": [user("Hi."), ASKS, RESULT],
}


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})


def render(source: str, messages: list[dict[str, Any]]) -> str:
    template = template_of(source)
    return folded(Conversation(tuple(messages)), probe(template)).render(template)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_word_is_in_the_prompt_once(template: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    can = probe(template_of(TEMPLATES[template]))
    text = render(TEMPLATES[template], messages)
    for message in messages:
        assert text.count(message["content"]) == 1 or not message["content"], f"{message} in {text}"
    for message in messages:
        if message.get("tool_calls") and can.calls:
            assert "ZvalueZ" in text


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_needs_no_folding_stays_as_it_is(template: str) -> None:
    """The same text as without it: the prompt is what transformers would render."""
    given = template_of(TEMPLATES[template])
    can = probe(given)
    for messages in ([user("Hi.")], [user("Hi."), answer("Yes."), user("Go.")], [system("A."), user("Hi.")]):
        if can.content == "text" and (can.system != "none" or messages[0]["role"] != "system"):
            assert folded(Conversation(tuple(messages)), can).render(given) == given.render(messages)


def test_templates_are_told_apart() -> None:
    found = {name: probe(template_of(source)) for name, source in TEMPLATES.items()}
    assert found["ChatML"] == Capabilities(tools=False, calls=False)
    assert (found["one system first"].system, found["one system first"].several_systems) == ("first", False)
    assert (found["no system"].system, found["no system"].alternates) == ("none", True)
    assert (found["last system"].several_systems, found["last system"].system) == (False, "first")
    assert found["parts"].content == "parts"
    assert found["null content"].null_content
    assert found["arguments as text"].arguments_as_text
    assert (found["Qwen"].tools, found["Qwen"].calls, found["Qwen"].alternates) == (True, True, False)
    assert found["Mistral"].alternates
    strict = MISTRAL.replace("{{- bos_token }}", "{{- bos_token }}{%- for m in messages %}"
        "{%- for c in m.tool_calls or [] %}{%- if c.id|length != 9 %}" \
        "{{ raise_exception('9') }}{%- endif %}{%- endfor %}{%- endfor %}")  # fmt: skip
    assert probe(template_of(strict)).id_length == 9


def test_what_is_lost_in_silence_has_a_name() -> None:
    lost = dropped_in_silence(Conversation((user("x"), ASKS, RESULT), (TOOL,)), probe(template_of(CHATML)))
    assert lost == ["tools", "earlier tool calls"]
    assert dropped_in_silence(Conversation((user("x"), ASKS), (TOOL,)), probe(template_of(QWEN))) == []


@pytest.mark.parametrize(
    ("source", "tools", "thoughts"),
    [
        (QWEN, "hermes", "think"),
        (LLAMA_3, "llama3", "think"),
        (MISTRAL, "mistral_list", "think"),
        (CHATML, "hermes", "think"),
        ("{{ '<|python_tag|>' }}", "llama3", "think"),
        ("{{ '[THINK][/THINK]' }}", "hermes", "mistral"),
        ("<|channel|>analysis", "harmony", "harmony"),
        (
            "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n<function="
            "{{ c.function.name }}>\n{% for k, v in c.function.arguments|items %}<parameter={{ k }}>\n{{ v }}\n"
            "</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}{% endfor %}",
            "qwen3_coder",
            "think",
        ),
    ],
)
def test_the_form_is_read_off_what_the_template_writes(source: str, tools: str, thoughts: str) -> None:
    template = template_of(source)
    syntax = detect_syntax(template, probe(template))
    assert (syntax.tools.name, syntax.thoughts.name) == (tools, thoughts)


def test_foreign_ids_become_short_ones_and_stay_so() -> None:
    assert short_id("abcDEF123", 9) == "abcDEF123"
    assert short_id("call_1", 9) == short_id("call_1", 9) != short_id("call_2", 9)
    assert len(short_id("call_1", 9)) == 9
