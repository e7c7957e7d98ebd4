"""The tokenizer in the metadata of a GGUF file, as the one that a tokenizer.json of the model would give.

gpt2    byte-level BPE with merges; `tokenizer.ggml.pre` names how texts are cut (gguf_pre_tokenizers.py)
llama   SentencePiece's BPE: spaces are U+2581, merges follow from the scores, other bytes are <0x00> to <0xFF>
gemma4  the same with merges of its own
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from kvtrove.config import nearest
from kvtrove.models.config_view import ConfigView
from kvtrove.models.gguf.header import GGUFHeader
from kvtrove.models.spec import ModelError
from kvtrove.text.gguf_pre_tokenizers import BEGUN, PATTERNS, WHOLE_WORDS

CONTROL, USER_DEFINED = 3, 4
NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
"""`tokenizer.ggml.*_token_id` -> what chat templates call the token."""
END_TOKENS = frozenset(
    {
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
        *(
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<\uff5cend\u2581of\u2581sentence\uff5c>",
            "<end_of_utterance>",
            "<|return|>",
            "<|call|>",
        ),
    }
)
"""Control tokens that end an answer: the files seldom name more than one of them."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_FAMILIES = ("gpt2", "llama", "gemma4")


class GGUFVocabulary:
    """What the keys `tokenizer.*` of a file say. Raises ModelError naming the file and the key."""

    def __init__(self, header: GGUFHeader) -> None:
        self.view = view = ConfigView(header.metadata, str(header.path))
        self.model = view.get("tokenizer.ggml.model")
        if self.model not in _FAMILIES:
            raise self.error("model", f"is {self.model!r}; supported: {', '.join(_FAMILIES)}")
        self.tokens: list[str] = list(self._strings("tokens"))
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        self.types = self._numbers("token_type", "bBhHiI")
        self.pre = view.get("tokenizer.ggml.pre", "")
        self.name = str(view.get("general.name", ""))

    def error(self, key: str, message: str) -> ModelError:
        return self.view.error(f"'tokenizer.ggml.{key}' {message}; --tokenizer takes one from elsewhere")

    def flag(self, key: str, default: bool) -> bool:
        return self.view.flag(f"tokenizer.ggml.{key}", default)

    def token(self, key: str) -> str | None:
        """The token whose id is `tokenizer.ggml.KEY_token_id`; None where it is left out."""
        number = self.view.get(f"tokenizer.ggml.{key}_token_id")
        if number is None or number == 0xFFFFFFFF:  # written for -1
            return None
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            raise self.error(f"{key}_token_id", f"is {number!r}, and there are {len(self.tokens)} tokens")
        return self.tokens[number]

    @property
    def named_tokens(self) -> dict[str, str]:
        found = {name: self.token(key) for key, name in NAMED.items()}
        return {name: token for name, token in found.items() if token is not None}

    @property
    def end_token_ids(self) -> list[int]:
        """The named ones first, then control tokens that are known to end an answer."""
        named = [self.token(key) for key in ("eos", "eot", "eom")]
        known = [token for token in END_TOKENS if self._kind(self.ids.get(token)) in (CONTROL, USER_DEFINED)]
        return list(dict.fromkeys(self.ids[token] for token in (*named, *sorted(known)) if token is not None))

    def added_tokens(self) -> Iterator[AddedToken]:
        """Tokens that are found in a text before it is cut; of Phi-3, they swallow the spaces behind them."""
        strips = any(word in self.name.lower() for word in ("phi-3", "phi3"))
        for index in np.flatnonzero((self.types == CONTROL) | (self.types == USER_DEFINED)):
            content, special = self.tokens[index], bool(self.types[index] == CONTROL)
            if content:
                strip = strips and content not in ("<unk>", "<s>", "<|endoftext|>")
                yield AddedToken(content, special=special, normalized=False, rstrip=strip)

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of tokens in the order in which they are joined."""
        pairs = []
        for number, line in enumerate(self._strings("merges")):
            at = line.find(" ", 1)
            if at < 0:
                raise self.error("merges", f"has {line!r} as number {number}, expected two pieces with a space between")
            pairs.append((line[:at], line[at + 1 :]))
        return pairs

    def merges_of_scores(self) -> list[tuple[str, str]]:
        """Each token is joined of any two others; those of the highest score first, as SentencePiece does."""
        scores = self._numbers("scores", "fd").tolist()
        found = []
        for token, number in self.ids.items():
            parts = ((token[:at], token[at:]) for at in range(1, len(token)))
            pairs = [(left, right) for left, right in parts if left in self.ids and right in self.ids]
            pairs.sort(key=lambda pair: (self.ids[pair[0]], self.ids[pair[1]]))
            found += [(-scores[number], pair) for pair in pairs]
        found.sort(key=lambda merge: merge[0])
        return [pair for _, pair in found]

    def _kind(self, token_id: int | None) -> int | None:
        return None if token_id is None else int(self.types[token_id])

    def _strings(self, key: str) -> Sequence[str]:
        value = self.view.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.error(key, "is missing" if value is None else f"is {value!r}, expected an array of strings")
        return value

    def _numbers(self, key: str, kinds: str) -> Any:
        """One number per token."""
        value = self.view.get(f"tokenizer.ggml.{key}")
        if value is None and key == "token_type":
            return np.ones(len(self.tokens), np.int32)
        if not isinstance(value, array) or value.typecode not in kinds or len(value) != len(self.tokens):
            raise self.error(key, f"is {value!r:.60}, expected one number for each of {len(self.tokens)} tokens")
        return np.asarray(value)


def build_tokenizer(vocabulary: GGUFVocabulary) -> Tokenizer:
    """ModelError naming the key when it cannot be one of `tokenizers`."""
    try:
        backend = _byte_level(vocabulary) if vocabulary.model == "gpt2" else _sentencepiece(vocabulary)
        backend.add_tokens(list(vocabulary.added_tokens()))
        backend.post_processor = _surrounding(vocabulary)
    except ModelError:
        raise
    except BaseException as error:  # the library raises nothing narrower, and panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise vocabulary.error("model", f"{vocabulary.model!r} does not fit its tokens and merges: {error}") from error
    return backend


def _byte_level(vocabulary: GGUFVocabulary) -> Tokenizer:
    name = vocabulary.pre
    if name not in PATTERNS:
        known = f"{nearest(str(name), PATTERNS)}; supported: {', '.join(PATTERNS)}"
        raise vocabulary.error("pre", f"names the unknown pre-tokenizer {name!r}{known}")
    model = models.BPE(vocabulary.ids, vocabulary.merges(), ignore_merges=name in WHOLE_WORDS)
    backend = Tokenizer(model)
    cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in PATTERNS[name]]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(vocabulary: GGUFVocabulary) -> Tokenizer:
    """Text that is no token is spelled in bytes, or becomes the unknown token where there are none."""
    merges = vocabulary.merges() if vocabulary.model == "gemma4" else vocabulary.merges_of_scores()
    spelled = "<0x00>" in vocabulary.ids
    unknown = vocabulary.token("unknown")
    backend = Tokenizer(models.BPE(vocabulary.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=spelled))
    prefixed = vocabulary.flag("add_space_prefix", vocabulary.model == "llama")
    to_spaces = [normalizers.Prepend(_SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*to_spaces, normalizers.Replace(" ", _SPACE)])
    if vocabulary.model == "gemma4":
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    from_spaces = decoders.Replace(_SPACE, " ")
    backend.decoder = decoders.Sequence([from_spaces, decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def _surrounding(vocabulary: GGUFVocabulary) -> Any:
    """What is put around a text: BOS and EOS where the file asks for them."""
    begins = vocabulary.flag("add_bos_token", vocabulary.model != "gpt2" or vocabulary.pre in BEGUN)
    bos = vocabulary.token("bos") if begins else None
    eos = vocabulary.token("eos") if vocabulary.flag("add_eos_token", False) else None
    around = [token for token in (bos, eos) if token is not None]
    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    byte_level = [processors.ByteLevel(trim_offsets=False)] if vocabulary.model == "gpt2" else []
    template = processors.TemplateProcessing(
        single=single, special_tokens=[(token, vocabulary.ids[token]) for token in dict.fromkeys(around)]
    )
    return processors.Sequence([*byte_level, template])


def chat_templates(header: GGUFHeader) -> Mapping[str, str]:
    """Name -> text: `tokenizer.chat_template` is "default", `tokenizer.chat_template.NAME` others."""
    prefix = "tokenizer.chat_template"
    found = {key: text for key, text in header.metadata.items() if key.startswith(prefix) and isinstance(text, str)}
    return {key[len(prefix) :].removeprefix(".") or "default": text for key, text in found.items()}


def sampling_defaults_of(header: GGUFHeader) -> dict[str, Any]:
    """`general.sampling.*` as fields of SamplingParams."""
    names = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
    names["penalty_repeat"] = "repetition_penalty"
    values = {ours: header.metadata.get(f"general.sampling.{theirs}") for theirs, ours in names.items()}
    return {name: value for name, value in values.items() if value is not None}
