"""The demo model's tokenizer: byte-level BPE, each digit a token of its own, and a chat template.

python training/tokenizer.py DIRECTORY
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kvtrove.demo.prose import paragraphs
from kvtrove.demo.world import World

VOCAB = 8192
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
DIALOGUES = 20_000
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _texts() -> Iterator[str]:
    """Prose, and enough of the world that each of its words becomes one token."""
    yield from paragraphs("train")
    world = World(0, "train", loose=True)
    for number in range(DIALOGUES):
        if number % 50 == 0:
            world = World(number, "train", loose=True)
        fact = world.fact()
        yield from (
            fact.statement,
            fact.acknowledgement,
            fact.question,
            fact.answer,
            *world.small_talk(),
            "assistant user",
        )


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    settings = {
        "eos_token": END,
        "pad_token": PAD,
        "chat_template": TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 4608,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    save_tokenizer(make_tokenizer(), Path(sys.argv[1]))
