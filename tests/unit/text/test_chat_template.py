"""ChatTemplate against transformers' apply_chat_template, byte for byte; what it refuses, and what it cannot reach."""

from __future__ import annotations

import contextlib
import enum
import time
from datetime import datetime
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from kvtrove.models.spec import ModelError
from kvtrove.request import RequestError
from kvtrove.text.chat_template import ChatTemplate
from kvtrove.text.tokenizer import Tokenizer
from tests.unit.text.built_tokenizers import build, write
from tests.unit.text.chat_templates import CHATML, LLAMA_2, LLAMA_3, QWEN, TEMPLATES

NAMED = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Wetter für "eine" Stadt <b>',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "at": 1.5}},
}
CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello, wörld 🙂"}],
    "system": [{"role": "system", "content": " Be <brief>. "}, {"role": "user", "content": "hi\n"}],
    "turns": [
        {"role": "system", "content": "s", "name": None},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "  answer &amp;\n"},
        {"role": "user", "content": "b {{ messages }} {% raw %}"},
        {"role": "assistant", "content": "the last words "},
    ],
    "wrong order": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}],
    "tool calls": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "21"},
        {"role": "assistant", "content": "It is 21."},
        {"role": "user", "content": "thanks"},
    ],
    "reasoning": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "reasoning": "\nadd them", "content": "2", "reasoning_content": None},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]},
    ],
}
SETTINGS = {
    "prompt": {"add_generation_prompt": True},
    "no prompt": {"add_generation_prompt": False},
    "tools": {"add_generation_prompt": True, "tools": TOOLS},
    "continued": {"add_generation_prompt": False, "continue_final_message": True},
    "variables": {
        "add_generation_prompt": True,
        "enable_thinking": False,
        "date_string": "1 Jan 2030",
        "bos_token": "<other>",
        "documents": [{"title": "t", "text": "x"}],
    },
}


def reference(template: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=build("byte-level"), chat_template=template, **NAMED)


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("style", TEMPLATES)
def test_rendered_text_equals_transformers(style, conversation, options):
    messages, settings_ = CONVERSATIONS[conversation], SETTINGS[options]
    ours = ChatTemplate(TEMPLATES[style], NAMED)
    try:
        expected = reference(TEMPLATES[style]).apply_chat_template(messages, tokenize=False, **settings_)
    except (jinja2.TemplateError, ValueError, TypeError):
        with pytest.raises(RequestError):
            ours.render(messages, **settings_)
    else:
        assert ours.render(messages, **settings_) == expected


def test_most_combinations_do_render():
    """The comparison above would say nothing if both sides always refused."""
    rendered = 0
    for template in [ChatTemplate(source, NAMED) for source in TEMPLATES.values()]:
        for messages in CONVERSATIONS.values():
            for options in SETTINGS.values():
                with contextlib.suppress(RequestError):
                    rendered += bool(template.render(messages, **options))
    assert rendered > 0.7 * len(TEMPLATES) * len(CONVERSATIONS) * len(SETTINGS)


@given(
    contents=st.lists(st.text(max_size=30), min_size=1, max_size=4),
    style=st.sampled_from(["ChatML", "Llama 3", "Qwen"]),
    continued=st.booleans(),
)
def test_any_contents_equal_transformers(contents, style, continued):
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    options = {"add_generation_prompt": not continued, "continue_final_message": continued}
    expected = reference(TEMPLATES[style]).apply_chat_template(messages, tokenize=False, **options)
    assert ChatTemplate(TEMPLATES[style], NAMED).render(messages, **options) == expected


def test_messages_are_left_as_they_were():
    messages = [{"role": "user", "content": "hi", "name": None}]
    ChatTemplate(CHATML).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert messages == [{"role": "user", "content": "hi", "name": None}]


def test_the_clock_is_the_callers():
    template = ChatTemplate(LLAMA_3, NAMED, clock=lambda: datetime(2031, 5, 6))
    assert "Today Date: 06 May 2031" in template.render(CONVERSATIONS["one"])


def test_subclasses_of_plain_values_are_made_plain():
    role = enum.StrEnum("Role", ["user"]).user
    assert ChatTemplate(CHATML).render([{"role": role, "content": "x"}]).startswith("<|im_start|>user\nx")


# ---- where templates are found ----


def named(directory: Path) -> str:
    template = Tokenizer.load(directory).chat_template
    assert template is not None
    return template.render(CONVERSATIONS["one"])


def test_a_template_file_comes_before_the_configuration_and_that_before_chat_template_json(tmp_path):
    write(tmp_path, chat_template={"chat_template": "from json"})
    assert named(tmp_path) == "from json"
    write(tmp_path, tokenizer_config={"chat_template": "from config"})
    assert named(tmp_path) == "from config"
    (tmp_path / "chat_template.jinja").write_text("from file {{ messages[0].content }} ö", encoding="utf-8")
    assert named(tmp_path) == "from file Hello, wörld 🙂 ö"
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert named(tmp_path) == theirs.apply_chat_template(CONVERSATIONS["one"], tokenize=False)


def test_templates_see_the_named_tokens_of_the_checkpoint(tmp_path):
    config = {
        "bos_token": "<s>",
        "image_token": "<i>",
        "chat_template": "{{ bos_token }}{{ image_token }}{{ pad_token }}",
    }
    write(tmp_path, tokenizer_config=config)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert named(tmp_path) == theirs.apply_chat_template(CONVERSATIONS["one"], tokenize=False) == "<s><i>"


@pytest.mark.parametrize("tools", [None, [], TOOLS])
def test_of_several_templates_tool_use_is_taken_when_there_are_tools(tmp_path, tools):
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    write(tmp_path, tokenizer_config={"chat_template": several})
    template = Tokenizer.load(tmp_path).chat_template
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(CONVERSATIONS["one"], tools=tools, tokenize=False)
    assert template.render(CONVERSATIONS["one"], tools=tools) == expected
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools from a file")
    (tmp_path / "chat_template.jinja").write_text("plain from a file")
    template = Tokenizer.load(tmp_path).chat_template
    expected = "plain from a file" if tools is None else "tools from a file"
    assert template.render(CONVERSATIONS["one"], tools=tools) == expected


def test_no_default_among_several_templates(tmp_path):
    write(tmp_path, tokenizer_config={"chat_template": [{"name": "rag", "template": "x"}]})
    with pytest.raises(RequestError, match="none of the model's chat templates is the default one: rag"):
        Tokenizer.load(tmp_path).chat_template.render(CONVERSATIONS["one"])


def test_broken_templates_name_their_file(tmp_path):
    write(tmp_path, tokenizer_config={"chat_template": "{{ messages\n{% if %}"})
    with pytest.raises(
        ModelError, match=r"tokenizer_config\.json: the chat template 'default' is not valid Jinja: line"
    ):
        Tokenizer.load(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja: the chat template"):
        Tokenizer.load(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    write(tmp_path, tokenizer_config={"chat_template": [{"title": "x"}]})
    with pytest.raises(ModelError, match=r"chat_template must be a text or a list of \{name, template\}"):
        Tokenizer.load(tmp_path)


# ---- what is refused ----

USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages: expected a list of messages, found 'hi'"),
        (USER, "messages: expected a list of messages, found {'role'"),
        ([], "messages: the conversation is empty"),
        ([USER, "hi"], r"messages\[1\]: expected an object with role and content, found 'hi'"),
        ([USER, {"content": "x"}], r"messages\[1\].role: expected a name such as user, found missing"),
        ([{"role": 3, "content": "x"}], r"messages\[0\].role: expected a name such as user, found 3"),
        ([{"role": "", "content": "x"}], r"messages\[0\].role: expected a name such as user, found ''"),
        ([{"role": "user"}], r"messages\[0\].content: expected a string or a list of parts, found missing"),
        (
            [USER, {"role": "user", "content": 4}],
            r"messages\[1\].content: expected a string or a list of parts, found 4",
        ),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\].content\[0\]: expected an object such as .* found 'x'"),
        ([{"role": "user", "content": [{"text": "x"}]}], r"messages\[0\].content\[0\].type: expected a string"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]}],
            r"messages\[0\].content\[1\].text: expected a string, found missing",
        ),
        (
            [{"role": "user", "content": "x", "at": {"of": [object()]}}],
            r"messages\[0\].at.of\[0\]: object is not a JSON",
        ),
        (
            [{"role": "user", "content": "x", 3: 4}],
            r"messages\[0\]: expected an object whose keys are strings, found 3",
        ),
    ],
)
def test_malformed_messages_are_named(messages, message):
    with pytest.raises(RequestError, match=message) as caught:
        ChatTemplate(CHATML).render(messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("options", "message", "param"),
    [
        ({"tools": {"a": 1}}, "tools: expected a list of objects", "tools"),
        ({"tools": [TOOLS[0], print]}, r"tools\[1\]: expected an object", "tools"),
        ({"documents": ["x"]}, r"documents\[0\]: expected an object, found 'x'", "documents"),
        ({"flag": object()}, "chat_template_kwargs.flag: object is not a JSON value", "chat_template_kwargs"),
        ({"continue_final_message": True}, "set one of them to false", "continue_final_message"),
    ],
)
def test_malformed_settings_are_named(options, message, param):
    with pytest.raises(RequestError, match=message) as caught:
        ChatTemplate(CHATML).render([USER], **options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("{{ messages|length }}", [USER], "this chat template does not use content"),
        ("{{ 'content' }}", [USER], "leaves the last message out"),
        (CHATML, [USER, {"role": "assistant", "tool_calls": [CALL]}], r"messages\[1\].content: .* there is none"),
    ],
)
def test_messages_that_cannot_be_continued(template, messages, message):
    with pytest.raises(RequestError, match=message):
        ChatTemplate(template).render(messages, add_generation_prompt=False, continue_final_message=True)


def test_what_a_template_raises_is_told():
    with pytest.raises(RequestError, match=r"refuses these messages: Conversation roles must alternate user/assistant"):
        ChatTemplate(LLAMA_2, NAMED).render([USER, USER])
    with pytest.raises(RequestError, match=r"fails on these messages: TypeError: can only concatenate str"):
        ChatTemplate(CHATML).render([{"role": "user", "content": [{"type": "text", "text": "x"}]}])


# ---- what a template cannot do ----


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}x{{ ''.__class__.__base__.__subclasses__()[0] }}",
        "{{ raise_exception.__globals__['json'].codecs.open('/etc/passwd') }}",
        "{{ strftime_now.__globals__ }}{{ strftime_now.__globals__.sys.exit() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ self.__init__.__globals__['__builtins__'] }}",
        "{{ ('%s'|attr('format')).__globals__.x }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ '{0.__class__}'.format_map({'0': messages}).y.z }}",
        "{{ dict.mro() }}",
        "{{ dict.update(messages[0], role='system') }}",
        "{{ dict.__class__.mro() }}",
        "{{ namespace(__call__=1) }}",
        "{% set ns = namespace() %}{% set ns.__html__ = messages %}",
        "{% for x in messages|map(attribute='__class__') %}{{ x.mro() }}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages.clear() }}",
        "{{ messages[0].pop('role') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% for n in range(10**9) %}x{% endfor %}",
        "{{ range(999999999)|list }}",
    ],
)
def test_the_sandbox_holds(attack):
    messages = [dict(USER)]
    start = time.monotonic()
    with pytest.raises(RequestError):
        ChatTemplate(attack).render(messages)
    assert time.monotonic() - start < 5, "it must fail, not work through the loop"
    assert messages == [USER]


def test_messages_are_not_templates():
    rendered = ChatTemplate(CHATML).render([{"role": "user", "content": "{{ 7 * 7 }}{% for x in y %}"}])
    assert "{{ 7 * 7 }}{% for x in y %}" in rendered


def test_thinking_can_be_switched_off_through_a_variable():
    template = ChatTemplate(QWEN)
    assert template.render([USER], enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert template.render([USER]).endswith("<|im_start|>assistant\n")
