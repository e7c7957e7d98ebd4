"""Dialogues of the recall grid: the demo model's world, and a user's own template with all that can be wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvtrove.config import ConfigError
from kvtrove.evaluate.sources import Dialogue, source

GOOD: dict[str, Any] = {
    "statement": "The code of the safe is {value}.",
    "question": "What is the code of the safe?",
    "values": ["4711", "0815"],
    "filler": ["It rains.", "The train is late."],
}


def write(tmp_path: Path, content: object, name: str = "needle.json") -> str:
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(tmp_path / name)


def drawn(dialogue: Dialogue) -> list[Any]:
    fact = dialogue.fact()
    return [fact.statement, fact.question, fact.value, *(dialogue.filler() for _ in range(5))]


def test_the_world_states_what_it_asks_for() -> None:
    for seed in range(20):
        fact = source(None)(seed).fact()
        assert fact.value in fact.statement
        assert fact.value not in fact.question


def test_the_same_seed_gives_the_same_dialogue_and_another_one_another(tmp_path: Path) -> None:
    for one in (source(None), source(write(tmp_path, GOOD))):
        assert drawn(one(3)) == drawn(one(3))
        assert len({json.dumps(drawn(one(seed))) for seed in range(8)}) > 1


def test_a_template_puts_a_value_into_its_statement(tmp_path: Path) -> None:
    dialogue = source(write(tmp_path, GOOD))(0)
    fact = dialogue.fact()
    assert fact.value in GOOD["values"]
    assert fact.statement == f"The code of the safe is {fact.value}."
    assert (fact.question, fact.acknowledgement) == (GOOD["question"], "OK.")
    assert {dialogue.filler() for _ in range(40)} == {(text, "OK.") for text in GOOD["filler"]}


def test_a_template_may_be_toml(tmp_path: Path) -> None:
    text = """
        statement = "Remember {value}."
        question = "What?"
        reply = "Yes."
        values = ["tulip"]
        filler = ["Hello."]
    """
    dialogue = source(write(tmp_path, text, "needle.toml"))(0)
    assert dialogue.fact().statement == "Remember tulip."
    assert dialogue.filler() == ("Hello.", "Yes.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statment": "x"}, r"unknown field 'statment' \(did you mean 'statement'\?\)"),
        ({"statement": None}, "the field 'statement' is missing; there must be statement, question, values, filler"),
        ({"filler": None}, "the field 'filler' is missing"),
        ({"statement": "The code is known."}, r"the statement must say \{value\}"),
        ({"question": 3}, "question must be text"),
        ({"reply": ["a"]}, "reply must be text"),
        ({"values": []}, "values must be a list of texts, none of them empty"),
        ({"values": "4711"}, "values must be a list"),
        ({"values": ["1", ""]}, "values must be a list of texts, none of them empty"),
        ({"filler": [1]}, "filler must be a list of texts"),
        ({"filler": ["Room 4711 is free."]}, "the value '4711' stands in filler too"),
        ({"question": "Is it 0815?"}, "the value '0815' stands in question too"),
    ],
)
def test_what_is_wrong_with_a_template_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        source(write(tmp_path, content))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", r"not JSON \(a TOML file ends in .toml\)"),
        ("a.json", "[1]", "must hold an object with statement"),
        ("a.toml", "x = ", "not TOML"),
        ("none.json", None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = str(tmp_path / name) if text is None else write(tmp_path, text, name)
    with pytest.raises(ConfigError, match=message):
        source(path)
