"""Small tokenizers of every kind that checkpoints come with, trained on a few lines, written as checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It does not mind: the dog is fast asleep, and the fox is quick.",
    "def fork(table): return [block.acquire() for block in table]  # shares every sealed block, copies the open tail",
    "Größe, naïveté, Œuvre; 你好、世界。 こんにちは世界 안녕하세요 Привет, мир! 🙂🙃 ok?",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9",
] * 4
BYTES = [f"<0x{n:02X}>" for n in range(256)]


def _special(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def byte_level(bos: bool = False) -> Tokenizer:
    """As GPT-2, Llama 3, Qwen: bytes spelled as printable characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(_special("<|begin|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    if bos:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
                ),
            ]
        )
    return tokenizer


def byte_level_ids(tokenizer: Tokenizer, text: bytes) -> list[int]:
    """One token per byte, UTF-8 or not: printable bytes spell themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [tokenizer.token_to_id(spelled[byte]) for byte in text]


def sentencepiece(style: str = "prepend") -> Tokenizer:
    """As Llama 2, Mistral, Gemma: spaces spelled as ▁, unknown characters as byte tokens.

    style: "prepend" (a normalizer puts ▁ before the text), "metaspace" (a pre-tokenizer does), "plain" (nobody does).
    """
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    corpus = [line for n, line in enumerate(CORPUS) if n % 4 != 2]  # other scripts stay bytes
    trained.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=240, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *BYTES, *sorted(model["vocab"], key=model["vocab"].__getitem__), "▁▁", "▁▁▁▁"]
    vocab = {word: n for n, word in enumerate(dict.fromkeys(words))}
    merges = [tuple(merge) for merge in model["merges"]]
    if "▁" in vocab:
        merges += [("▁", "▁"), ("▁▁", "▁▁")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    start = [] if style == "plain" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *start]
    )
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif style == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
        )
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens(_special("<unk>", "<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def word_level() -> Tokenizer:
    words = sorted({word for line in CORPUS for word in line.split()})
    vocab = {word: n for n, word in enumerate(["<unk>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(_special("</s>"))
    return tokenizer


def suffixed() -> Tokenizer:
    """As GPT-1: the end of a word is part of its last token, and a space only where another word follows."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level, BOS": lambda: byte_level(bos=True),
    "SentencePiece": sentencepiece,
    "SentencePiece, Metaspace": lambda: sentencepiece("metaspace"),
    "SentencePiece, no prefix": lambda: sentencepiece("plain"),
    "WordLevel": word_level,
    "suffixed BPE": suffixed,
}


@cache
def _serialised(kind: str) -> str:
    return BUILDERS[kind]().to_str()


def build(kind: str) -> Tokenizer:
    return Tokenizer.from_str(_serialised(kind))


def write(directory: Path, kind: str = "byte-level", **files: Any) -> Path:
    """A checkpoint directory with a tokenizer.json; tokenizer_config={...} adds a tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(_serialised(kind), encoding="utf-8")
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory
