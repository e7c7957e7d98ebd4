"""What archives of a prefix cost: bytes, how far keys and values are off, and KL of what is predicted behind it.

    python benchmarks/macro/archives.py MODEL --tokens 2048 --after 128

The text is read twice behind the same prefix, whose rows are once the exact ones and once those of the archive.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from kvtrove import LLM, SamplingParams
from kvtrove.archive import archived
from kvtrove.engine import Engine
from kvtrove.evaluate.fidelity import TeacherForced
from kvtrove.evaluate.text import read_text, segments
from kvtrove.kv.tiers.checkpoint import read_checkpoint

WORDS = ("int8", "int4", "lowrank=0.9+int8", "lowrank=0.75+int8", "lowrank=0.5+int8", "lowrank=0.25+int8")


class Behind(TeacherForced):
    """Continues behind what is cached of the text under a salt."""

    def __init__(self, engine: Engine, tokens: list[int], prefix: int, salt: str) -> None:
        super().__init__(engine, tokens)
        engine.kv.free(self.sequence)
        self.sequence = engine.kv.open(salt.encode())
        match = engine.kv.match(self.sequence, self.tokens, prefix)
        assert match.num_tokens == prefix, "the prefix is whole blocks, and cached"
        assert engine.kv.allocate(self.sequence, 0, match)


def predicted(engine: Engine, tokens: list[int], prefix: int, salt: str) -> torch.Tensor:
    """Log-probabilities float64 [len(tokens) - prefix, vocab_size]."""
    with Behind(engine, tokens, prefix, salt) as behind:
        return behind.logits(len(tokens) - prefix).double().log_softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2048, help="of the prefix")
    parser.add_argument("--after", type=int, default=128, help="tokens that are predicted behind it")
    parser.add_argument("--text", help="a UTF-8 file instead of the embedded prose")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LLM(args.model, kv="2GiB", warm_up=False) as llm:
        engine, prefix = llm.llm_engine, args.tokens // 32 * 32
        tokens = segments(engine.tokenizer, read_text(args.text), prefix + args.after, prefix + args.after)[0]
        llm.generate([tokens[:prefix]], SamplingParams(max_tokens=1), use_tqdm=False)
        exact = predicted(engine, tokens, prefix, "")
        llm.checkpoint(Path(folder) / "exact", prompt=tokens[:prefix])
        whole = read_checkpoint(Path(folder) / "exact")
        print(f"{'archive':<20}{'bytes':>7}{'error':>8}{'KL':>9}{'same top':>9}")
        for word in WORDS:
            _, price = archived(whole, engine.kv.spec, word)
            llm.checkpoint(Path(folder) / "small", prompt=tokens[:prefix], archive=word)
            back = llm.restore(Path(folder) / "small")
            other = predicted(engine, tokens, prefix, back.cache_salt)
            kl = float((exact.exp() * (exact - other)).sum(-1).mean())
            same = float((exact.argmax(-1) == other.argmax(-1)).double().mean())
            print(f"{word:<20}{price.nbytes / price.exact_bytes:>7.1%}{back.error:>8.2%}{kl:>9.4f}{same:>9.1%}")


if __name__ == "__main__":
    main()
