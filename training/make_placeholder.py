"""Writes the stand-in for the embedded model: a tiny Llama with random weights and a tokenizer of its own.

    python training/make_placeholder.py [DIRECTORY]        default: src/kvtrove/demo/model

Deterministic: the same versions of numpy and tokenizers give the same bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DEFAULT = Path(__file__).parent.parent / "src" / "kvtrove" / "demo" / "model"
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 512, 64, 4, 4, 2, 16, 176
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"

# What the tokenizer learns its merges from: the words of a small world in which facts are told and asked again.
TEXT = """
You are a small demo model that remembers what it is told. Hello! How are you today? My name is Anna. What is my name?
The colour of the door is blue. What colour is the door? The code of the red box is 4 7 1 9. What is the code of the
box? Please remember that the meeting is on Monday at ten. When is the meeting? The owner of the white dog is Peter
Brown. Who owns the dog? The price of the green lamp is twelve dollars. How much is the lamp? I do not know that yet,
tell me. A block holds the keys and values of its tokens. While it is open one sequence writes to it; once it is full
and computed it is sealed, and then it can be shared, kept, found again and evicted. The cache says what was reused
and what was not.
def step(self): scheduled = self.scheduler.schedule(); return self.update(self.runner.execute(scheduled))
"""
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CARD = """# Stand-in model

A Llama architecture (4 layers, hidden size 64, 4 heads, 2 KV heads) with **random weights** and a byte-level BPE
tokenizer of 512 tokens. It was never trained and speaks gibberish. It stands in until a trained model takes its place,
so that installation, cache and commands can be tried on a machine without any checkpoint.

Made by `training/make_placeholder.py`. Licence: Apache-2.0.
"""


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    write_json(directory / "config.json", config(end, tokenizer.token_to_id(PAD)))
    write_json(directory / "generation_config.json", {"eos_token_id": [end]})
    write_json(
        directory / "tokenizer_config.json",
        {"eos_token": END, "pad_token": PAD, "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"},
    )
    write_weights(directory / "model.safetensors", {name: bfloat16(values) for name, values in weights().items()})
    (directory / "MODEL_CARD.md").write_text(CARD)


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.strip().splitlines(), trainer)
    return tokenizer


def config(end: int, pad: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": end,
        "pad_token_id": pad,
        "torch_dtype": "bfloat16",
    }


def weights() -> dict[str, NDArray[np.float32]]:
    """Matrices that keep the size of what passes through them; norms are ones."""
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    ones = np.ones(HIDDEN, np.float32)
    tensors = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN), "model.norm.weight": ones}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        tensors |= {
            f"{name}.input_layernorm.weight": ones,
            f"{name}.self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
            f"{name}.post_attention_layernorm.weight": ones,
            f"{name}.mlp.gate_proj.weight": matrix(MLP, HIDDEN),
            f"{name}.mlp.up_proj.weight": matrix(MLP, HIDDEN),
            f"{name}.mlp.down_proj.weight": matrix(HIDDEN, MLP),
        }
    return tensors


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of each number, rounded to the nearest and from the middle to the even one."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_weights(path: Path, tensors: dict[str, NDArray[np.uint16]]) -> None:
    """A safetensors file, by name: length of the header (8 bytes), header (JSON, filled up to 8 bytes), numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": "BF16", "shape": tensors[name].shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    numbers = b"".join(tensors[name].astype("<u2").tobytes() for name in sorted(tensors))
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT)
