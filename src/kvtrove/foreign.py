"""Everyday settings of vLLM and llama.cpp: what they are called here, or why they set nothing.

Whoever comes from there keeps a script: a flag of this table means the same, or a note says what it would do. One table
for the command line and for the keyword arguments of `LLM` (`--max-num-seqs` is `max_num_seqs` there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MODEL = "MODEL"
VALUE = "{}"


@dataclass(frozen=True)
class Foreign:
    """A setting of another engine.

    takes: values that follow the flag; "?": one, where the next word is on, off or auto.
    ours: words that replace it, VALUE for the value, MODEL for "the value is the model"; empty sets nothing.
    note: what a person reads when it sets nothing. only: the one value that is fine; another is an error with the note.
    """

    takes: int | str = 1
    ours: tuple[str, ...] = ()
    note: str = ""
    only: str | None = None


def _same(flag: str, takes: int = 1) -> Foreign:
    return Foreign(takes, (flag, VALUE) if takes else (flag,))


def _nothing(note: str, takes: int | str = 0) -> Foreign:
    return Foreign(takes, (), note)


_MEMORY = "the KV cache takes a safe share of free memory, or --kv SIZE"
_ONE_DEVICE = "this engine runs on one device"
_PLACE = "a model is on one device, which --device chooses"
_CHUNKS = "long prompts are always computed in chunks"

_ADAPTERS = "adapters need no room of their own: --lora-modules NAME=PATH is enough"

FLAGS: dict[str, Foreign] = {
    # vLLM
    "--model": Foreign(1, (MODEL,)),
    "--kv-cache-memory-bytes": _same("--kv"),
    "--num-gpu-blocks-override": _same("--num-blocks"),
    "--enable-prefix-caching": _same("--prefix-caching", 0),
    "--no-enable-prefix-caching": _same("--no-prefix-caching", 0),
    "--tool-call-parser": _same("--tool-format"),
    "--enable-auto-tool-choice": _nothing("tool calls are always read"),
    "--allowed-origins": _same("--cors-origin"),
    "--uvicorn-log-level": _same("--log-level"),
    "--gpu-memory-utilization": _nothing(_MEMORY, 1),
    "--swap-space": _nothing(_MEMORY, 1),
    "--cpu-offload-gb": _nothing(_PLACE, 1),
    "--tensor-parallel-size": Foreign(1, (), _ONE_DEVICE, only="1"),
    "-tp": Foreign(1, (), _ONE_DEVICE, only="1"),
    "--pipeline-parallel-size": Foreign(1, (), _ONE_DEVICE, only="1"),
    "--data-parallel-size": Foreign(1, (), _ONE_DEVICE, only="1"),
    "--enforce-eager": _nothing("steps run without recorded graphs"),
    "--max-seq-len-to-capture": _nothing("steps run without recorded graphs", 1),
    "--enable-lora": _nothing(_ADAPTERS),
    "--max-loras": _nothing(_ADAPTERS, 1),
    "--max-lora-rank": _nothing(_ADAPTERS, 1),
    "--max-cpu-loras": _nothing(_ADAPTERS, 1),
    "--trust-remote-code": _nothing("no code of a checkpoint is ever run"),
    "--disable-log-stats": _nothing("--log-level warning silences them"),
    "--disable-log-requests": _nothing("--log-level warning silences them"),
    "--disable-uvicorn-access-log": _nothing("--log-level warning silences it"),
    "--disable-custom-all-reduce": _nothing(_ONE_DEVICE),
    "--enable-chunked-prefill": _nothing(_CHUNKS),
    "--no-enable-chunked-prefill": _nothing(_CHUNKS),
    "--tokenizer-mode": _nothing("the checkpoint's tokenizer.json is read", 1),
    "--generation-config": _nothing("the checkpoint's generation_config.json is read", 1),
    "--quantization": _nothing("how weights are stored is read from the checkpoint; --weights int8 quantises them", 1),
    "--chat-template-content-format": _nothing("it is read off the template", 1),
    "--distributed-executor-backend": _nothing(_ONE_DEVICE, 1),
    "--async-scheduling": _nothing("steps are scheduled by the engine alone"),
    "--use-tqdm-on-load": _nothing("--quiet draws no progress"),
    # llama.cpp
    "-m": Foreign(1, (MODEL,)),
    "-hf": Foreign(1, (MODEL,)),
    "--hf-repo": Foreign(1, (MODEL,)),
    "-c": _same("--max-model-len"),
    "--ctx-size": _same("--max-model-len"),
    "-t": _same("--threads"),
    "-np": _same("--max-num-seqs"),
    "--parallel": _same("--max-num-seqs"),
    "-b": _same("--max-num-batched-tokens"),
    "--batch-size": _same("--max-num-batched-tokens"),
    "--n-predict": _same("--max-tokens"),
    "--predict": _same("--max-tokens"),
    "--temp": _same("--temperature"),
    "-s": _same("--seed"),
    "-sys": _same("--system"),
    "--system-prompt": _same("--system"),
    "-a": _same("--served-model-name"),
    "--alias": _same("--served-model-name"),
    "-ctk": _same("--cache-type-k"),
    "-ctv": _same("--cache-type-v"),
    "--chat-template-file": _same("--chat-template"),
    "--ssl-cert-file": _same("--ssl-certfile"),
    "--ssl-key-file": _same("--ssl-keyfile"),
    "--api-prefix": _same("--root-path"),
    "--timeout": _same("--request-timeout"),
    "--no-warmup": _same("--no-warm-up", 0),
    "-ngl": _nothing(_PLACE, 1),
    "--gpu-layers": _nothing(_PLACE, 1),
    "--n-gpu-layers": _nothing(_PLACE, 1),
    "-fa": _nothing("attention never writes its scores to memory", "?"),
    "--flash-attn": _nothing("attention never writes its scores to memory", "?"),
    "-ub": _nothing("a step computes --max-num-batched-tokens at most", 1),
    "--ubatch-size": _nothing("a step computes --max-num-batched-tokens at most", 1),
    "-tb": _nothing("--threads counts for prompts, too", 1),
    "--threads-batch": _nothing("--threads counts for prompts, too", 1),
    "--mlock": _nothing("weights are read into memory at the start"),
    "--no-mmap": _nothing("weights are read into memory at the start"),
    "--jinja": _nothing("chat templates are always rendered"),
    "-cb": _nothing("requests always share steps"),
    "--cont-batching": _nothing("requests always share steps"),
    "--metrics": _nothing("/metrics is always there"),
    "--slots": _nothing("the page at / shows the requests in flight"),
    "-v": Foreign(0, ("--log-level", "debug")),
    "--verbose": Foreign(0, ("--log-level", "debug")),
}


@dataclass(frozen=True)
class Translated:
    """args: of our command. model: what a flag named as the model. notes: for a person, one a line."""

    args: list[str]
    model: str | None
    notes: list[str]


def translate(args: Sequence[str], own: frozenset[str] | set[str]) -> Translated:
    """Replace flags of FLAGS. own: flags that the command itself has; these stay, as does all behind `--`.

    ValueError when a value is missing, or when one is given that this engine cannot do.
    """
    kept: list[str] = []
    notes: list[str] = []
    model = None
    words = list(args)
    while words:
        word = words.pop(0)
        if word == "--":
            return Translated([*kept, word, *words], model, notes)
        name, equals, inline = word.partition("=")
        found = FLAGS.get(name)
        if not word.startswith("-") or name in own or found is None or (found.ours and not _known(found.ours, own)):
            kept.append(word)
            continue
        if found.takes == 1 and not equals and not words:
            raise ValueError(f"{name} needs a value")
        value = inline if equals else words.pop(0) if found.takes == 1 else ""
        if found.takes == "?" and words and words[0] in ("on", "off", "auto"):
            words.pop(0)
        if found.ours == (MODEL,):
            model = value
        elif found.only is not None and value != found.only:
            raise ValueError(f"{name} {value}: {found.note}; {found.only} is what it can be")
        elif found.ours:
            kept += [part.replace(VALUE, value) for part in found.ours]
        elif found.only is None:
            notes.append(f"{name} sets nothing here: {found.note}")
    return Translated(kept, model, notes)


def _known(ours: tuple[str, ...], own: frozenset[str] | set[str]) -> bool:
    return ours[0] == MODEL or ours[0] in own


def setting_of(name: str) -> tuple[str | None, bool]:
    """(our name of a keyword argument that is vLLM's, whether it is one that sets nothing here)."""
    found = FLAGS.get("--" + name.replace("_", "-"))
    if found is None or found.only is not None:
        return None, False
    if len(found.ours) == 2 and found.ours[1] == VALUE:
        return found.ours[0].removeprefix("--").replace("-", "_"), False
    return None, not found.ours
