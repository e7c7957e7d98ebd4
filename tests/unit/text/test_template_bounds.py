"""Hostile chat templates: each is stopped with an error that names its file, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from kvtrove.models.spec import ModelError
from kvtrove.request import RequestError
from kvtrove.text.budget import CURRENT, Budget
from kvtrove.text.chat_template import ChatTemplate, read_chat_template

HI = [{"role": "user", "content": "hi"}]
DOUBLED = "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}"
SHARED = "{% set x = ['ab'] %}" + "{% set x = [x, x] %}" * 60
HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(99999) %}{{ 'x' * 99 }}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a\nb'|indent(10**9) }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ 10**(10**8) }}",
    "{{ messages|slice(10**9)|list }}",
    "{{ messages|batch(10**9, 'x')|list }}",
    "{{ lipsum(10**9) }}",
    "{{ ('a' * 30000)|replace('a', 'b' * 30000) }}",
    "{{ ('a' * 30000).replace('', 'b' * 30000) }}",
    "{{ ('b' * 90000).join(['a'] * 90000) }}",
    "{{ (['a'] * 90000)|join('b' * 90000) }}",
    "{{ ('\t' * 99999).expandtabs(99999) }}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    DOUBLED,
    DOUBLED.replace("~", "+"),
    SHARED + "{{ x }}",
    SHARED + "{{ x|tojson }}",
    SHARED + "{{ 'a' ~ x }}",
    SHARED + "{{ '%s' % x }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_is_stopped(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    template = read_chat_template(tmp_path, None, {})
    assert template is not None
    token = CURRENT.set(Budget(seconds=2.0, steps=200_000))
    try:
        with pytest.raises(RequestError, match=r"chat_template\.jinja is stopped|fails on these messages") as error:
            template.render(HI)
        assert error.value.param == "messages"
    finally:
        CURRENT.reset(token)


@pytest.mark.parametrize(
    "source", ["{% if a %}{% endif %}" * 100_000, "{{ " + "(" * 1000 + "1" + ")" * 1000 + " }}", "x" * 2**20]
)
def test_a_template_that_takes_long_to_compile_is_refused_at_load(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(ModelError, match=r"chat_template\.jinja: the chat template"):
        read_chat_template(tmp_path, None, {})


def test_work_that_nobody_waits_for_ends() -> None:
    budget = Budget()
    budget.cancel()
    token = CURRENT.set(budget)
    try:
        with pytest.raises(RequestError, match="nobody waits"):
            ChatTemplate("{% for m in messages %}x{% endfor %}").render(HI)
    finally:
        CURRENT.reset(token)


def test_counting_changes_no_text() -> None:
    source = (
        "{% for m in messages if m.role %}{{ loop.index ~ '/' ~ loop.length }}{{ loop.last }}{{ m.content|upper ~ 1 }}"
        "{% endfor %}{{ [1, 'a']|join('-') }}{{ {'a': [1]}|tojson(indent=2) }}{{ '%s-%d' % ('x', 3) }}{{ 7 // 2 * 3 }}"
        "{{ 'a,b'.split(',')|length }}{{ missing ~ 'x' }}{{ [1, 2] + [3] }}{{ messages|map(attribute='role')|list }}"
    )
    plain = jinja2.Environment().from_string(source.replace("|tojson(indent=2)", ""))
    ours = ChatTemplate(source.replace("|tojson(indent=2)", "")).render(HI * 2, add_generation_prompt=True)
    assert ours == plain.render(messages=HI * 2)
