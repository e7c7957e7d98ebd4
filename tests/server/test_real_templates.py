"""The chat templates of real models, where a folder of them is named: they may not be part of this repository.

CHAT_TEMPLATES=llama.cpp/models/templates python -m pytest tests/server/test_real_templates.py
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import jinja2
import pytest

from kvtrove.request import RequestError
from kvtrove.server.chat.conversation import Conversation
from kvtrove.server.chat.detect import detect_syntax
from kvtrove.server.chat.events import CallArguments, CallBegins
from kvtrove.server.chat.folding import folded
from kvtrove.text.capabilities import CALL, TOOL, USER, probe
from kvtrove.text.chat_template import ChatTemplate
from tests.server.test_folding import ASKS, CONVERSATIONS, RESULT, answer, system, template_of, user

FOLDER = os.environ.get("CHAT_TEMPLATES")
PATHS = sorted(Path(FOLDER).glob("*.jinja")) if FOLDER else []
every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)

FORMS = {
    "apertus": ["Apertus-8B-Instruct"],
    "apriel": ["Apriel-1.6-15b-Thinker-fixed", "MiniMax-M1", "unsloth-Apriel-1.5"],
    "cohere": ["Cohere2MoE", "CohereForAI-c4ai-command-r7b-12-2024-tool_use"],
    "command_r_plus": ["CohereForAI-c4ai-command-r-plus-tool_use"],
    "deepseek": [
        "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        "llama-cpp-deepseek-r1",
    ],
    "deepseek_v31": ["deepseek-ai-DeepSeek-V3.1"],
    "deepseek_v32": ["deepseek-ai-DeepSeek-V3.2"],
    "deepseek_v4": ["deepseek-ai-DeepSeek-V4-Flash-0731", "deepseek-ai-DeepSeek-V4"],
    "functionary": ["meetkai-functionary-medium-v3.1"],
    "functionary_v3.2": ["meetkai-functionary-medium-v3.2"],
    "gemma4": ["google-gemma-4-31B-it-interleaved", "google-gemma-4-31B-it"],
    "gigachat": ["GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B"],
    "glm": [
        *("GLM-4.6", "GLM-4.7-Flash", "Spark2.5", "inclusionai-ling-3.0-flash"),
        *("poolside-Laguna-S-2.1", "poolside-Laguna-XS-2.1", "poolside-Laguna-XS.2"),
    ],
    "granite": ["ibm-granite-granite-3.3-2B-Instruct"],
    "harmony": ["openai-gpt-oss-120b"],
    "hermes": [
        *("Bielik-11B-v3.0-Instruct", "HuggingFaceTB-SmolLM3-3B", "MiMo-VL"),
        *("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use"),
        *("Qwen-QwQ-32B", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "Reka-Edge"),
        *("ibm-granite-granite-4.0", "ibm-granite-granite-4.1"),
    ],
    "hunyuan": ["tencent-Hy3"],
    "kimi_k2": ["Kimi-K2-Instruct", "Kimi-K2-Thinking", "moonshotai-Kimi-K2"],
    "kimi_k3": ["Kimi-K3"],
    "llama3": [
        *("meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct"),
    ],
    "minicpm5": ["openbmb-MiniCPM5-1B"],
    "minimax_m2": ["MiniMax-M2"],
    "minimax_m3": ["MiniMax-M3"],
    "mistral": [
        "Mistral-Small-3.2-24B-Instruct-2506",
        "mistralai-Ministral-3-14B-Reasoning-2512",
        "unsloth-mistral-Devstral-Small-2507",
    ],
    "mistral_list": ["mistralai-Mistral-Nemo-Instruct-2407"],
    "muse": ["muse-glimmer"],
    "nemotron": ["NVIDIA-Nemotron-Nano-v2"],
    "pythonic": ["LFM2-8B-A1B", "LFM2.5-8B-A1B", "LFM2.5-Instruct"],
    "qwen3_coder": ["NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Qwen3-Coder", "Qwen3.5-4B", "StepFun3.5-Flash"],
    "seed_oss": ["ByteDance-Seed-OSS"],
    "solar": ["upstage-Solar-Open-100B"],
}
FORM_OF = {stem: form for form, stems in FORMS.items() for stem in stems}
WITHOUT_TOOLS = {
    *("fireworks-ai-llama-3-firefunction-v2", "google-gemma-2-2b-it", "llama-cpp-rwkv-world"),
    "microsoft-Phi-3.5-mini-instruct",
}
WRITES_NO_CALL = {  # known by a mark in its source
    *("HuggingFaceTB-SmolLM3-3B", "Kimi-K2-Instruct", "Kimi-K2-Thinking", "LFM2-8B-A1B", "LFM2.5-Instruct"),
    *("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "ibm-granite-granite-3.3-2B-Instruct"),
}
ENDS = ("<|eot_id|>", "<|call|>")  # end tokens, which are no text of an answer


@every
def test_a_call_that_a_template_writes_is_read_back(path: Path) -> None:
    template = template_of(path.read_text(encoding="utf-8"))
    can = probe(template)
    syntax = detect_syntax(template, can)
    if path.stem in WITHOUT_TOOLS:
        assert not can.tools
        assert not can.calls
        return
    assert syntax.tools.name == FORM_OF[path.stem]
    if path.stem in WRITES_NO_CALL:
        return
    tools = [TOOL] if can.tools else None
    before = template.render([USER], tools=tools)
    whole = template.render([USER, can.call_message()], tools=tools, add_generation_prompt=False)
    written = whole[len(before) :] if whole.startswith(before) else whole[whole.rindex(USER["content"]) :]
    for end in ENDS:
        written = written.removesuffix(end)
    events = [event for event in syntax.parser([TOOL]).push(written) if isinstance(event, CallBegins | CallArguments)]
    assert isinstance(events[0], CallBegins)
    assert events[0].name == CALL["function"]["name"]
    assert (
        json.loads("".join(e.text for e in events[1:] if isinstance(e, CallArguments))) == CALL["function"]["arguments"]
    )


@every
def test_no_conversation_is_refused_that_folding_could_mend(path: Path) -> None:
    """And no word of it is lost."""
    template = template_of(path.read_text(encoding="utf-8"))
    can = probe(template)
    try:
        template.render([user("Hi.")])
    except RequestError:
        pytest.skip("the template needs more than messages")
    for name, messages in CONVERSATIONS.items():
        if any(m.get("tool_calls") for m in messages) and not (can.calls and can.results):
            continue
        text = folded(Conversation(tuple(messages)), can).render(template)
        for message in messages:
            assert message["content"] in text, f"{name}: {message} in {text}"


AS_THEY_COME: list[list[dict[str, Any]]] = [
    *CONVERSATIONS.values(),
    [user("Hi.")],
    [system("Be brief."), user("Hi."), answer("  Yes. "), user("Go.\n")],
    [user("Hi."), {**answer("Yes."), "reasoning_content": "Hm."}, user("Go.")],
    [user("Hi."), {**ASKS, "content": "I look."}, RESULT, answer("Seven."), user("And?")],
    [user([{"type": "text", "text": "In"}, {"type": "text", "text": "parts"}])],  # type: ignore[arg-type]
]


@every
def test_texts_are_those_of_transformers(path: Path) -> None:
    """For conversations as they come, with tools and without: the same text, or both refuse."""
    template = template_of(path.read_text(encoding="utf-8"))
    for messages, tools, opens in itertools.product(AS_THEY_COME, (None, [TOOL]), (True, False)):
        try:
            found: str | None = template.render(messages, tools=tools, add_generation_prompt=opens)
        except RequestError:
            found = None
        assert found == _reference(template, messages, tools, opens)


def _reference(template: ChatTemplate, messages: Any, tools: Any, opens: bool) -> str | None:
    from transformers.utils.chat_template_utils import render_jinja_template

    options: dict[str, Any] = {"chat_template": template.sources["default"], "add_generation_prompt": opens}
    try:
        [text], _ = render_jinja_template([messages], tools=tools, **options, **template.named_tokens)
    except (jinja2.TemplateError, TypeError, AttributeError, ValueError, KeyError):
        return None
    return str(text)
