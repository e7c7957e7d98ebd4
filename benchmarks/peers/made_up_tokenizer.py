"""A tokenizer.model of made-up words beside a checkpoint, for converters and servers that refuse to work without.

    python benchmarks/peers/made_up_tokenizer.py DIR

Needs sentencepiece and protobuf. It has as many words as config.json has tokens; no text is worth giving it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as spm  # type: ignore[import-not-found]

SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = 256


def words(vocab_size: int) -> spm.ModelProto:
    """Special tokens, all bytes, then words that are merged from no others."""
    kinds = spm.ModelProto.SentencePiece
    model = spm.ModelProto()
    model.trainer_spec.model_type = spm.TrainerSpec.BPE
    model.trainer_spec.vocab_size = vocab_size
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    for number in range(vocab_size):
        piece = model.pieces.add()
        piece.score = -float(number)
        if number < len(SPECIAL):
            piece.piece, piece.type = SPECIAL[number], kinds.CONTROL if number else kinds.UNKNOWN
        elif number < len(SPECIAL) + BYTES:
            piece.piece, piece.type = f"<0x{number - len(SPECIAL):02X}>", kinds.BYTE
        else:
            piece.piece = f"word{number}"
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]
    if vocab_size <= len(SPECIAL) + BYTES:
        parser.error(f"{vocab_size} tokens are too few; {len(SPECIAL) + BYTES + 1} work")
    (directory / "tokenizer.model").write_bytes(words(vocab_size).SerializeToString())


if __name__ == "__main__":
    main()
