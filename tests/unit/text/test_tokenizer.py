"""Tokenizer against transformers' fast tokenizers over the same directories."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kvtrove.models.spec import ModelError
from kvtrove.request import RequestError
from kvtrove.text.tokenizer import Tokenizer
from tests.unit.text.built_tokenizers import BUILDERS, build, write

TEXTS = [
    "",
    " ",
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, a tab\tand\r\nlines \n\n",
    "Größe naïveté e\u0301 🙂🙃 👩‍👩‍👧 你好 العربية",
    "<|im_start|>user\nhi<|im_end|><s>x</s> <tool_call>",
]
LLAMA = {
    "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False, "single_word": False},
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
CHATML = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "pad_token": None}


def both(directory: Path) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    return Tokenizer.load(directory), PreTrainedTokenizerFast.from_pretrained(directory)


def agree(ours: Tokenizer, theirs: PreTrainedTokenizerFast, text: str) -> None:
    for special in (True, False):
        ids = theirs.encode(text, add_special_tokens=special)
        assert ours.encode(text, add_special_tokens=special) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", BUILDERS)
def test_ids_and_text_equal_transformers(tmp_path, kind):
    ours, theirs = both(write(tmp_path, kind))
    for text in TEXTS:
        agree(ours, theirs, text)
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("kind", ["byte-level, BOS", "SentencePiece", "SentencePiece, Metaspace"])
def test_any_text_equals_transformers(tmp_path, kind):
    ours, theirs = both(write(tmp_path, kind))

    @given(st.text(max_size=60))
    def same(text: str) -> None:
        agree(ours, theirs, text)

    same()


@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("kind", ["SentencePiece, Metaspace", "byte-level, BOS", "byte-level"])
@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_add_bos_token_is_treated_as_transformers_treats_it(tmp_path, kind, tokenizer_class, bos):
    config = {"tokenizer_class": tokenizer_class, **(LLAMA if "Sentence" in kind else CHATML)}
    if bos is not None:
        config |= {"add_bos_token": bos, "add_eos_token": bos}
    directory = write(tmp_path, kind, tokenizer_config=config)
    theirs = AutoTokenizer.from_pretrained(directory)
    text = "The quick brown fox"
    assert Tokenizer.load(directory).encode(text) == theirs.encode(text)


def test_named_tokens_as_text_or_object(tmp_path):
    ours, theirs = both(write(tmp_path, "SentencePiece", tokenizer_config=LLAMA))
    assert ours.bos_token == theirs.bos_token == "<s>"
    assert ours.eos_token_ids == (theirs.eos_token_id,) == (2,)
    assert ours.named_tokens == theirs.special_tokens_map
    assert ours.special_ids == {0, 1, 2}


def test_tokens_of_the_configuration_are_added_as_transformers_adds_them(tmp_path):
    listed = {
        "423": {"content": "<tool_call>", "special": False, "normalized": False},
        "500": {"content": "<|think|>", "special": False, "normalized": False},
        "424": {"content": "<|turn|>", "special": True, "normalized": False, "lstrip": True},
    }
    listed = {i: {"lstrip": False, "rstrip": False, "single_word": False} | token for i, token in listed.items()}
    config = CHATML | {
        "added_tokens_decoder": listed,
        "additional_special_tokens": ["<|im_start|>", "<|extra|>"],
        "image_token": "<|image|>",
        "pad_token": "<|pad|>",
    }
    ours, theirs = both(write(tmp_path, tokenizer_config=config))
    assert ours.named_tokens == theirs.special_tokens_map
    text = "a <|turn|>b<|think|>c<|extra|><|image|> d<|pad|><tool_call><|im_start|>"
    agree(ours, theirs, text)
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("special", [True, False])
def test_flags_of_a_token_that_both_files_list(tmp_path, special):
    """tokenizer.json says that <tool_call> is ordinary."""
    flags = {"normalized": False, "lstrip": True, "rstrip": False, "single_word": False}
    listed = {"423": {"content": "<tool_call>", "special": special, **flags}}
    ours, theirs = both(write(tmp_path, tokenizer_config={"added_tokens_decoder": listed}))
    agree(ours, theirs, "a <tool_call> b")


def test_special_tokens_map_counts_unless_the_configuration_lists_its_tokens(tmp_path):
    mapped = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|im_end|>", "additional_special_tokens": ["<|x|>"]}
    ours, theirs = both(write(tmp_path / "map", special_tokens_map=mapped))
    assert ours.named_tokens == theirs.special_tokens_map
    agree(ours, theirs, "hi<|x|>there")
    listed = {"tokenizer_config": {"eos_token": "<|begin|>", "added_tokens_decoder": {}}}
    ours, theirs = both(write(tmp_path / "both", special_tokens_map=mapped, **listed))
    assert ours.named_tokens == theirs.special_tokens_map == {"eos_token": "<|begin|>"}


def test_special_tokens_can_be_read_as_plain_text(tmp_path):
    ours, theirs = both(write(tmp_path, tokenizer_config={"split_special_tokens": True}))
    agree(ours, theirs, "a<|im_end|>b")


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path):
    tokenizer = build("byte-level")
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=10, pad_token="<|begin|>")
    directory = write(tmp_path)
    tokenizer.save(str(directory / "tokenizer.json"))
    agree(*both(directory), "The quick brown fox jumps over the lazy dog.")


@pytest.mark.parametrize(("ends", "expected"), [(None, (2,)), (7, (2, 7)), ([2, 7, 9], (2, 7, 9)), ([7, 2, 7], (2, 7))])
def test_end_tokens_are_the_tokenizers_own_and_the_generation_configs(tmp_path, ends, expected):
    directory = write(
        tmp_path, "SentencePiece", tokenizer_config=LLAMA, generation_config={"eos_token_id": ends, "top_k": 5}
    )
    assert Tokenizer.load(directory).eos_token_ids == expected


def test_vocab_size_covers_the_highest_id():
    tokenizer = build("byte-level")
    before = Tokenizer(tokenizer).vocab_size
    tokenizer.add_tokens([AddedToken("<more>")])
    assert Tokenizer(tokenizer).vocab_size == before + 1
    assert Tokenizer(tokenizer).knows(before)
    assert not Tokenizer(tokenizer).knows(before + 1)


@pytest.mark.parametrize("kind", [k for k in BUILDERS if k not in ("WordLevel", "suffixed BPE")])
def test_token_texts_join_to_the_text(kind):
    tokenizer = Tokenizer(build(kind))
    text = "The quick brown fox (x0 - y1)"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(map(tokenizer.token_text, ids)).removeprefix(" ") == text


def test_token_text_spells_what_has_no_text_of_its_own():
    tokenizer = Tokenizer(build("SentencePiece"))
    assert tokenizer.token_text(1) == "<s>"
    assert tokenizer.token_text(3 + 0xF0) == "\ufffd"
    assert tokenizer.token_text(99_999) == ""


def test_half_a_surrogate_pair_is_the_callers_mistake():
    with pytest.raises(RequestError, match="half a surrogate pair at character 3"):
        Tokenizer(build("byte-level")).encode("abc\ud83d")


def test_files_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(ModelError, match=r"convert tokenizer\.model with transformers"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"tokenizer\.json: not a tokenizer that `tokenizers` [\d.]+ reads: Model miss"
    ):
        Tokenizer.load(tmp_path)
    write(tmp_path)
    for name, text, message in [
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", "[1]", "holds a JSON list, expected an object"),
        ("tokenizer_config.json", '{"bos_token": {"text": "<s>"}}', "special tokens are not written as expected"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}', "special tokens are not written as expected"),
        ("generation_config.json", "nothing", "not valid JSON"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ModelError, match=rf"{name}.*{message}"):
            Tokenizer.load(tmp_path)
        (tmp_path / name).unlink()
    assert Tokenizer.load(tmp_path).chat_template is None
