"""What every client is asked, and how it is judged: a feature takes the server's URL, and raises when it fails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")

Feature = Callable[[str], None]
KEY = "none"
HI: list[Any] = [{"role": "user", "content": "Hello there!"}]
LONG: list[Any] = [{"role": "user", "content": "hello " * 9000}]
SYSTEM = "You are kind and patient, and you like cats. " * 12
RECORDED = Path(__file__).parents[2] / "tests" / "server" / "agents"


class Pet(BaseModel):
    """A pet, so small that a model of any size can write it."""

    kind: Literal["cat", "dog"]
    tame: bool


SCHEMA = Pet.model_json_schema() | {"additionalProperties": False}
FUNCTION: Any = {"type": "function", "function": {"name": "paint", "description": "Paints.", "parameters": SCHEMA}}
FLAT: Any = {"type": "function", "name": "paint", "parameters": SCHEMA, "strict": True}
TOOL: Any = {"name": "paint", "description": "Paints.", "input_schema": SCHEMA}


def wants(condition: bool, what: object = "") -> None:
    if not condition:
        raise AssertionError(f"not as wanted: {what}")


def wants_pet(text: str | dict[str, Any]) -> None:
    Pet.model_validate(json.loads(text) if isinstance(text, str) else text)


def fails(kind: type[Exception], call: Callable[[], Any], phrase: str = "") -> None:
    """The call raises this exception, and it says the phrase."""
    try:
        call()
    except kind as error:
        wants(phrase in str(error), error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")
