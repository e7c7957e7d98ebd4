"""OpenVINO GenAI's continuous batching on the cells of cells.py.

    python -m venv ov && ov/bin/pip install openvino-genai optimum-intel nncf torch      # an environment of its own
    ov/bin/optimum-cli export openvino -m HF --task text-generation-with-past --weight-format fp16 IR
    OMP_NUM_THREADS=2 ov/bin/python benchmarks/peers/drive_openvino.py IR --json openvino.json

HF is what checkpoint.py wrote. `--weight-format int8` makes an IR with int8 weights (say `--weights int8` then, which
is recorded alone). The cache is u8 unless --kv says otherwise, as is the engine's default on processors. If the export
cannot import transformers' models, uninstall torchvision.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from cells import Options, Peer, SteppedPeer, options, options_parser, report

BLOCK = 32
"""Tokens in a block of the cache of a processor."""
KV = ("default", "u8", "f16", "bf16", "f32")


class Engine:
    """A ContinuousBatchingPipeline (cells.Stepped)."""

    def __init__(self, settings: Options) -> None:
        import openvino_genai  # type: ignore[import-not-found]

        self._genai = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = settings.kv_tokens // BLOCK + settings.sequences + 2
        scheduler.max_num_batched_tokens = max(settings.chunk, settings.sequences)
        scheduler.max_num_seqs = settings.sequences
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": settings.threads}
        if settings.kv != "default":
            properties["KV_CACHE_PRECISION"] = settings.kv
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(settings.model), scheduler, "CPU", properties)
        self._handles: dict[int, Any] = {}

    def add(self, name: int, prompt: list[int], max_tokens: int) -> None:
        import numpy as np
        from openvino import Tensor  # type: ignore[import-not-found]

        config = self._genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        ids = Tensor(np.array([prompt], dtype=np.int64))
        self._handles[name] = self._pipeline.add_request(name, ids, config)

    def step(self) -> None:
        self._pipeline.step()

    def tokens(self) -> dict[int, int]:
        new: dict[int, int] = {}
        for name, handle in list(self._handles.items()):
            while handle.can_read():
                new[name] = new.get(name, 0) + sum(len(output.generated_ids) for output in handle.read().values())
            if handle.get_status() == self._genai.GenerationStatus.FINISHED:
                del self._handles[name]
        return new

    def busy(self) -> bool:
        return bool(self._pipeline.has_non_finished_requests())

    def abort(self) -> None:
        for handle in self._handles.values():
            handle.cancel()
        while self.busy():
            self.step()
        self._handles.clear()

    def forget(self) -> None:
        """The engine cannot; a new process begins with an empty one."""


def main() -> None:
    parser = options_parser(__doc__, KV, ("fp16", "int8"))
    args = parser.parse_args()
    settings = options(parser, args)

    def start() -> Peer:
        return SteppedPeer(Engine(settings), settings)

    report("openvino-genai", version("openvino-genai"), settings, start, args.json)


if __name__ == "__main__":
    main()
