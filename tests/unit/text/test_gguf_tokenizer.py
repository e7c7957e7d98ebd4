"""Tokenizers out of GGUF metadata give the ids of the tokenizers that the metadata were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex

from kvtrove.models.spec import ModelError
from kvtrove.text.generation_config import sampling_defaults
from kvtrove.text.gguf_pre_tokenizers import BEGUN, PATTERNS, WHOLE_WORDS
from kvtrove.text.tokenizer import Tokenizer
from tests.unit.text.built_tokenizers import build

TEXTS = [
    "",
    " ",
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, we'LL see",
    "  two spaces, a tab\tand\r\nlines \n\n   indented",
    "Größe naïveté e\u0301 🙂🙃 👩‍👩‍👧 你好 العربية हिन्दी",
    "<|im_start|>user\nhi<|im_end|><s>x</s> <tool_call>",
    "def fork(table):\n    return [block.acquire() for block in table]  # shares\n",
]
CONTROL, USER_DEFINED, NORMAL, BYTE = 3, 4, 1, 6
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m['content'] }}{% endfor %}"


def write(path: Path, kind: str, changes: dict[str, Any] | None = None) -> Path:
    """The tokenizer of that kind as llama.cpp's converter would write it. changes: keys to replace, None leaves out."""
    pipeline = json.loads(build(kind).to_str())
    added = {token["content"]: token for token in pipeline["added_tokens"]}
    ids = pipeline["model"]["vocab"] | {content: token["id"] for content, token in added.items()}
    tokens = sorted(ids, key=ids.__getitem__)
    types = [(CONTROL if added[t]["special"] else USER_DEFINED) if t in added else NORMAL for t in tokens]
    writer = gguf.GGUFWriter(path, "llama")
    merges = [" ".join(pair) for pair in pipeline["model"]["merges"]]
    keys: dict[str, Any] = {"tokens": tokens, "token_type": types, "chat_template": TEMPLATE}
    if kind.startswith("byte-level"):
        keys |= {"model": "gpt2", "pre": "gpt-2", "merges": merges, "bos_token_id": ids["<|begin|>"]}
        keys |= {"add_bos_token": "BOS" in kind, "eos_token_id": ids["<|im_end|>"]}
    else:
        ranks = {
            left + right: -float(rank) for rank, (left, right) in reversed([*enumerate(pipeline["model"]["merges"])])
        }
        keys |= {"model": "llama", "scores": [ranks.get(token, -1e4) for token in tokens]}
        keys |= {
            "add_space_prefix": "no prefix" not in kind,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "unknown_token_id": 0,
        }
    for name, value in (keys | (changes or {})).items():
        full = name if "." in name else f"tokenizer.{'' if name.startswith('chat') else 'ggml.'}{name}"
        if value is not None:
            writer.add_key_value(full, value, gguf.GGUFValueType.get_type(value), None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


KINDS = ("byte-level", "byte-level, BOS", "SentencePiece", "SentencePiece, no prefix")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("gguf")
    return {kind: write(root / f"{n}.gguf", kind) for n, kind in enumerate(KINDS)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_the_tokenizer(kind: str, text: str, files: dict[str, Path]) -> None:
    ours, theirs = Tokenizer.load(files[kind]), Tokenizer(build(kind))
    for special in (True, False):
        ids = theirs.encode(text, add_special_tokens=special)
        assert ours.encode(text, add_special_tokens=special) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


_LOADED: dict[Path, Tokenizer] = {}


@pytest.mark.parametrize("kind", KINDS[1:3])
@given(text=st.text(max_size=60))
def test_any_text_gives_the_same_ids(kind: str, files: dict[str, Path], text: str) -> None:
    path = files[kind]
    ours = _LOADED.setdefault(path, Tokenizer.load(path)) if path not in _LOADED else _LOADED[path]
    assert ours.encode(text) == Tokenizer(build(kind)).encode(text)


def test_named_and_end_tokens_and_the_template_come_from_the_file(files: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(files["byte-level, BOS"])
    assert tokenizer.named_tokens == {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}
    assert tokenizer.eos_token_ids == (tokenizer.backend.token_to_id("<|im_end|>"),)
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.render([{"role": "user", "content": "hi"}]) == "<|begin|>hi"
    other = write(tmp_path / "m.gguf", "byte-level", {"eos_token_id": None, "eot_token_id": 0, "chat_template": "{{"})
    with pytest.raises(ModelError, match=r"m\.gguf: the chat template 'default' is not valid Jinja"):
        Tokenizer.load(other)
    other = write(tmp_path / "n.gguf", "byte-level", {"eos_token_id": None, "eot_token_id": 0, "chat_template": None})
    ends = Tokenizer.load(other).eos_token_ids
    assert ends == (0, tokenizer.eos_token_ids[0]), "a control token that ends turns ends them though no key names it"


def test_sampling_defaults_of_a_file(tmp_path: Path) -> None:
    keys = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.penalty_repeat": 1.5}
    path = write(tmp_path / "m.gguf", "byte-level", keys)
    assert sampling_defaults(path) == pytest.approx({"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.5})
    path = write(tmp_path / "n.gguf", "byte-level", {"general.sampling.temp": -3.0})
    with pytest.raises(ModelError, match=r"n\.gguf: temperature"):
        sampling_defaults(path)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "other model": (
        {"model": "t5"},
        "'tokenizer.ggml.model' is 't5'; supported: gpt2, llama, gemma4; --tokenizer takes",
    ),
    "pre-tokenizer": (
        {"pre": "qwen9"},
        r"'tokenizer.ggml.pre' names the unknown pre-tokenizer 'qwen9' \(did you mean 'qwen2'",
    ),
    "no pre-tokenizer": ({"pre": None}, "'tokenizer.ggml.pre' names the unknown pre-tokenizer ''"),
    "no tokens": ({"tokens": None}, "'tokenizer.ggml.tokens' is missing"),
    "no merges": ({"merges": None}, "'tokenizer.ggml.merges' is missing"),
    "a merge of one": ({"merges": ["ab"]}, "'tokenizer.ggml.merges' has 'ab' as number 0, expected two pieces"),
    "a merge of no token": ({"merges": ["a ~~~~"]}, "'tokenizer.ggml.model' 'gpt2' does not fit its tokens and merges"),
    "types": (
        {"token_type": [1, 1]},
        r"'tokenizer.ggml.token_type' is array\('i', \[1, 1\]\), expected one number for each of",
    ),
    "bos": ({"bos_token_id": 10**6}, "'tokenizer.ggml.bos_token_id' is 1000000, and there are"),
    "flag": ({"add_bos_token": "yes"}, "'tokenizer.ggml.add_bos_token' is 'yes', expected true or false"),
}


@pytest.mark.parametrize(("changes", "message"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_a_tokenizer_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        Tokenizer.load(write(tmp_path / "m.gguf", "byte-level", changes))
    assert "m.gguf" in str(caught.value)


def test_scores_decide_which_merge_is_first(tmp_path: Path) -> None:
    tokens = ["<unk>", "a", "b", "c", "ab", "bc"]
    for best, expected in {"ab": ["ab", "c"], "bc": ["a", "bc"]}.items():
        scores = [-1.0 if token == best else -2.0 for token in tokens]
        keys = {"tokens": tokens, "token_type": [2, *[1] * 5], "scores": scores, "add_bos_token": False}
        path = write(tmp_path / f"{best}.gguf", "SentencePiece, no prefix", keys)
        assert [tokens[i] for i in Tokenizer.load(path).encode("abc")] == expected


def test_every_expression_is_one_that_the_library_reads() -> None:
    assert {name for name, cuts in PATTERNS.items() for cut in cuts if not Regex(cut)} == set()
    assert BEGUN < WHOLE_WORDS < PATTERNS.keys()
