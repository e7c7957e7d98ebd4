"""Text to token ids and back, as a checkpoint's own files say. Needs `tokenizers`, not transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from kvtrove.models.gguf.header import gguf_file, read_header
from kvtrove.models.spec import ModelError
from kvtrove.request import RequestError
from kvtrove.text.chat_template import ChatTemplate, build_templates, read_chat_template
from kvtrove.text.files import read_json
from kvtrove.text.gguf_tokenizer import GGUFVocabulary, build_tokenizer, chat_templates
from kvtrove.text.tokenizer_check import check_tokenizer

MANY_IDS = 1024
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A checkpoint's tokenizer.

    vocab_size: one more than the highest token id. special_ids: what `decode` leaves out unless told otherwise.
    named_tokens: "bos_token" -> "<s>" and so on, as chat templates see them.
    eos_token_ids: the tokenizer's end token, then those of generation_config.json.
    ordinary: a token that is plain text ([] in a vocabulary without an "a"), to decode others behind it.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        named_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend, self.named_tokens, self.chat_template = backend, dict(named_tokens or {}), chat_template
        end = backend.token_to_id(self.named_tokens.get("eos_token", ""))
        self.eos_token_ids = tuple(dict.fromkeys([*([] if end is None else [end]), *eos_token_ids]))
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)
        self._spelled: dict[int, str] = {}
        ordinary = backend.encode("a", add_special_tokens=False).ids[-1:]
        self.ordinary = ordinary if self.decode(ordinary) else []

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Reads tokenizer.json and, where they exist, tokenizer_config.json, special_tokens_map.json,
        generation_config.json and the chat template; of a GGUF file, its metadata. ModelError names the file that is
        missing or broken.

        The pipeline, with what `encode` adds around a text, is tokenizer.json's; as in transformers 5, `add_bos_token`
        and `add_eos_token` of tokenizer_config.json do not change it.
        """
        directory = Path(directory)
        if (file := gguf_file(directory)) is not None:
            return cls._of_gguf(file)
        backend = _backend(directory)
        config = read_json(directory / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:
            config |= read_json(directory / "special_tokens_map.json")
        try:
            named = dict(_named_tokens(config))
            backend.add_tokens(list(_missing_tokens(backend, config, named)))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            path = directory / "tokenizer_config.json"
            raise ModelError(f"{path}: its special tokens are not written as expected: {error}") from error
        backend.encode_special_tokens = config.get("split_special_tokens") is True
        ends = read_json(directory / "generation_config.json").get("eos_token_id")
        end_ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
        return cls(backend, named, end_ids, read_chat_template(directory, config.get("chat_template"), named))

    @classmethod
    def _of_gguf(cls, file: Path) -> Tokenizer:
        header = read_header(file)
        vocabulary = GGUFVocabulary(header)
        backend, named, texts = build_tokenizer(vocabulary), vocabulary.named_tokens, chat_templates(header)
        template = build_templates(texts, named, dict.fromkeys(texts, file)) if texts else None
        return cls(backend, named, vocabulary.end_token_ids, template)

    @classmethod
    def without_tokens(cls) -> Tokenizer:
        """For a model that has no tokenizer: prompts are token ids, and every output is an empty text."""
        return cls(tokenizers.Tokenizer(tokenizers.models.BPE()))

    @property
    def bos_token(self) -> str | None:
        return self.named_tokens.get("bos_token")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; add_special_tokens: with what the tokenizer puts around a text (BOS).

        RequestError when the text holds half a surrogate pair, as JSON can but UTF-8 cannot.
        """
        ids: list[int] = self._encoded(text, add_special_tokens).ids
        return ids

    def count(self, text: str) -> int:
        """How many tokens a rendered conversation has: without a list of them, which takes a while to make."""
        return len(self._encoded(text, add_special_tokens=False))

    def _encoded(self, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
        try:  # of the ways to encode, only a batch lets other threads run meanwhile
            return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        except TypeError:
            for at, character in enumerate(text):
                if "\ud800" <= character <= "\udfff":
                    raise RequestError(f"the text has half a surrogate pair at character {at}; send Unicode") from None
            raise

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of the ids; ids that no token has are left out, bytes that are not UTF-8 become U+FFFD."""
        if len(ids) > MANY_IDS:  # a batch lets other threads run meanwhile
            return self.backend.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)[0]
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def decode_after(self, context: Sequence[int], ids: Sequence[int]) -> str:
        """What `ids` add to the text of `context`, special tokens included.

        When they change that text (a byte that is not UTF-8 spoils its neighbours): what they add to an ordinary token.
        """
        for before in (list(context), self.ordinary):
            start = self.decode(before, skip_special_tokens=False)
            text = self.decode([*before, *ids], skip_special_tokens=False)
            if text.startswith(start):
                return text[len(start) :]
        return self.decode(ids, skip_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        """What a token adds in the middle of a text: alone, many tokenizers would drop its leading space.

        Remembered: thousands of log-probabilities spell the same tokens again and again.
        """
        text = self._spelled.get(token_id)
        if text is None:
            text = self._spelled[token_id] = self.decode_after(self.ordinary, [token_id])
        return text

    def ids_of(self, tokens: Iterable[str]) -> list[int]:
        """Of those that the vocabulary has."""
        ids = (self.backend.token_to_id(token) for token in tokens)
        return [token_id for token_id in ids if token_id is not None]

    def knows(self, token_id: int) -> bool:
        """Whether a token has this id: models often have more logits than tokens."""
        return self.backend.id_to_token(token_id) is not None


def _backend(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        others = [name for name in ("tokenizer.model", "tekken.json", "vocab.json") if (directory / name).is_file()]
        hint = f"; convert {others[0]} with transformers' AutoTokenizer(...).save_pretrained(...)" if others else ""
        raise ModelError(f"{path}: no such file, and the tokenizer is read from it{hint}")
    check_tokenizer(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # the library raises nothing narrower, and panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ModelError(
            f"{path}: not a tokenizer that `tokenizers` {tokenizers.__version__} reads: {error}"
        ) from error


def _named_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """("bos_token", "<s>") ...: the usual names, and names of the model's own such as "image_token"."""
    for name in NAMED_TOKENS:
        if config.get(name) is not None:
            yield name, _content(config[name])
    for name, token in config.items():
        if name.endswith("_token") and name not in NAMED_TOKENS and isinstance(token, str):
            yield name, token
    extra = config.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        for name, token in extra.items():
            yield name, _content(token)


def _missing_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]
) -> Iterator[AddedToken]:
    """Tokens that the configuration has and tokenizer.json lacks, in the order in which transformers adds them."""
    present = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    for token in [AddedToken(**listed[i]) for i in sorted(listed, key=int)]:
        if repr(token) not in present:
            known.add(token.content)
            token.special = token.special or token.content in named.values()
            yield token
    for content in [*named.values(), *map(_content, () if isinstance(extra, Mapping) else extra)]:
        if content not in known:
            known.add(content)
            yield AddedToken(content, special=True)


def _content(token: Any) -> str:
    """The text of a token that is written as "<s>" or as {"content": "<s>", ...}."""
    return token if isinstance(token, str) else str(token["content"])
