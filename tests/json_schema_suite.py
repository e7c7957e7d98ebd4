"""Drives the schemas of JSON-Schema-Test-Suite through our grammars, and checks what a random writer makes of them.

    python -m tests.json_schema_suite DIRECTORY     of draft2020-12 (in jsonschema's source: json/tests/draft2020-12)

Every schema, strict and lenient: refused with a message, or written several times by drawing allowed tokens at random
and validated by another implementation. An output that is not done after MAX_TOKENS is cut.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np

from kvtrove.demo import demo_model_dir
from kvtrove.request import RequestError
from kvtrove.server.guidance import Grammar, Grammars, TokenGuide
from kvtrove.text.tokenizer import Tokenizer

EOS = 2
OUTPUTS, MAX_TOKENS, PATIENCE = 4, 300, 24


def schemas(directory: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(directory.glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            yield f"{path.stem}: {group['description']}", group["schema"]


class Writer:
    """Draws allowed tokens; after PATIENCE of them it prefers those that bring a text to its end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        spelled = [tokenizer.token_text(i) for i in range(tokenizer.vocab_size)]
        self._closing = np.array([text[:1] in ('"', "}", "]") for text in spelled])

    def write(self, guide: TokenGuide, rng: random.Random) -> str | None:
        """A whole text, None when it was cut."""
        tokens: list[int] = []
        for step in range(MAX_TOKENS):
            bits = np.unpackbits(guide.mask().view(np.uint8), bitorder="little")[: self.tokenizer.vocab_size]
            allowed = np.flatnonzero(bits)
            closing = allowed[self._closing[allowed]]
            if EOS in allowed and (len(allowed) == 1 or step > PATIENCE or rng.random() < 0.3):
                return self.tokenizer.decode(tokens)
            picks = closing if step > PATIENCE and len(closing) and rng.random() < 0.8 else allowed[allowed != EOS]
            tokens.append(int(picks[rng.randrange(len(picks))]))
            guide.accept(tokens[-1])
            assert guide.problem is None, guide.problem
        return None


def outcome(grammars: Grammars, writer: Writer, schema: Any, lenient: bool) -> tuple[str, str]:
    """(valid, invalid, cut or refused; the text or the message)."""
    if not isinstance(schema, dict):
        return "refused", "a schema of true or false is refused by its type"
    try:
        guide = grammars.compile(Grammar("json_schema", schema, "schema", lenient))
    except RequestError as error:
        return "refused", str(error)
    texts = [writer.write(guide.copy(), random.Random(seed)) for seed in range(OUTPUTS)]
    done = [text for text in texts if text is not None]
    if not done:
        return "cut", ""
    validator = jsonschema_rs.Draft202012Validator(schema)
    for text in done:
        if not validator.is_valid(json.loads(text)):
            return ("relaxed" if guide.relaxed else "invalid"), text
    return "valid", done[0]


def main(directory: Path) -> int:
    tokenizer = Tokenizer.load(demo_model_dir())
    grammars = Grammars(tokenizer.backend, tokenizer.vocab_size, (EOS,))
    writer = Writer(tokenizer)
    worst = 0
    for lenient in (False, True):
        counts: Counter[str] = Counter()
        for name, schema in schemas(directory):
            try:
                what, text = outcome(grammars, writer, schema, lenient)
            except (AssertionError, ValueError) as error:
                what, text = "failed", str(error)
            counts[what] += 1
            if what in ("invalid", "failed") or "--verbose" in sys.argv:
                print(f"  {what:8} {name}: {text[:160]!r}")
        total = counts.total()
        print(f"{'lenient' if lenient else 'strict'}: {total} schemas,", dict(sorted(counts.items())))
        worst += counts["invalid"] + counts["failed"]
    grammars.close()
    return worst


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]))))
