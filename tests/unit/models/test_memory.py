"""Loading never holds a checkpoint twice.

What a load costs is anonymous memory (RssAnon): pages of the mapped file (RssFile) are clean, shared with every other
process that maps the file, and dropped by the kernel when it needs them, so VmHWM, which counts both, overstates it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory use from Linux's /proc")

HIDDEN, INNER, LAYERS, VOCAB = 512, 2048, 10, 16384

# Samples RssAnon in a thread every millisecond, since a layer's conversion is over before progress is reported.
SCRIPT = """
import re, sys, threading, time
from pathlib import Path
import torch
from kvtrove.kernels.linear import PackedWeights
from kvtrove.models.config_reader import read_spec
from kvtrove.models.loader import load_model
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from kvtrove.plan.process import return_large_buffers

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def watch():
    while not done:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

directory, precision = Path(sys.argv[1]), Precision(*sys.argv[2:4], weights="int8" if "int8" in sys.argv else "auto")
products = Products(precision, wanted=sys.argv[4])
return_large_buffers()  # as an engine does at its start: what a conversion took goes back at once
ones = torch.ones(300, 300, dtype=torch.float32)
ones.to(torch.bfloat16)  # threads and buffers of the first operation, ours as well
PackedWeights(300, 300).fill(0, ones)
before, done, peak = anonymous(), [], [0]
thread = threading.Thread(target=watch)
thread.start()
model = load_model(directory, read_spec(directory), products)
done.append(True)
thread.join()
print(max(peak[0], anonymous()) - before)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A float32 Llama of about 200 MB and its size in bytes."""
    directory = tmp_path_factory.mktemp("large")
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (INNER, HIDDEN) for part in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INNER)
    save_file({name: torch.rand(shape) for name, shape in shapes.items()}, directory / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory, 4 * sum(torch.Size(shape).numel() for shape in shapes.values())


def growth(directory: Path, dtype: str, activations: str, *linear: str) -> int:
    """Peak growth of anonymous memory in bytes while the checkpoint is loaded in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, str(directory), dtype, activations, *(linear or ("torch",))]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_conversion_costs_the_converted_size(checkpoint: tuple[Path, int]) -> None:
    directory, size = checkpoint
    assert 180e6 < size < 220e6
    converted = size / 2
    assert 0.9 * converted < growth(directory, "bfloat16", "bfloat16") < 1.15 * converted


def test_a_checkpoint_in_the_wanted_dtype_costs_nothing(checkpoint: tuple[Path, int]) -> None:
    directory, size = checkpoint
    assert growth(directory, "float32", "float32") < 0.03 * size


def test_packed_weights_cost_their_own_size(checkpoint: tuple[Path, int]) -> None:
    """Fused matrices, and an output matrix that is the embedding, beside one converted part at a time.

    The C library keeps some of the buffers that parts were converted in, up to 60 MB of them on a busy machine; whoever
    held the weights twice would need twice their size.
    """
    directory, size = checkpoint
    packed = size / 2
    assert 0.9 * packed < growth(directory, "bfloat16", "float32", "own") < 1.75 * packed


def test_int8_costs_a_byte_per_weight(checkpoint: tuple[Path, int]) -> None:
    directory, size = checkpoint
    assert 0.9 * size / 4 < growth(directory, "float32", "float32", "auto", "int8") < 1.15 * size / 4
