"""What users get wrong, and the one line that they see: which flag, file or field it is and what would work.

Each row of the tables is one mistake and a regular expression for the message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kvtrove.config import ConfigError
from kvtrove.request import RequestError, SamplingParams

# ---- flags and requests: `kvtrove <args>` ----

GENERATE = ("generate", "demo", "hi", "--max-tokens", "1")


@dataclass(frozen=True)
class Row:
    args: tuple[str, ...]
    message: str
    stdin: str | None = None
    env: dict[str, str] = field(default_factory=dict)


COMMAND_ROWS = {
    "unknown command": Row(("genrate",), r"No such command 'genrate' \(did you mean 'generate'\?\)"),
    "unknown flag": Row((*GENERATE, "--tempreature", "1"), r"No such option: --tempreature \(.*--temperature"),
    "unknown flag of the engine": Row((*GENERATE, "--blocksize", "1"), r"--blocksize \(.*--block-size"),
    "unknown flag before the command": Row(("--verson",), r"--verson \(.*--version"),
    "no model": Row(("generate",), r"Missing argument 'MODEL'\. Example: kvtrove generate demo --chat"),
    "no trace": Row(("simulate",), r"Missing option '--trace'\. Example: kvtrove simulate --trace"),
    "a full disk": Row((*GENERATE, "--kv-dir", "/proc/kv"), r"free at /proc/kv is 0 bytes; choose one with 32MiB free"),
    "no prompt": Row(("generate", "demo"), r"no prompt: give one after MODEL, or --file"),
    "flag without its value": Row(("generate", "demo", "hi", "--kv"), r"--kv.* requires an argument"),
    "number that is none": Row((*GENERATE, "--n", "two"), r"'--n'.*valid int"),
    "missing prompt file": Row(("generate", "demo", "--file", "no.txt"), r"--file: cannot read no\.txt: No such file"),
    "folder as prompt file": Row(("generate", "demo", "--file", "."), r"--file: cannot read \.: Is a directory"),
    "empty prompt file": Row(("generate", "demo", "--file", "-"), r"--file: stdin holds no prompt", stdin="\n \n"),
    "empty prompt": Row(("generate", "demo", ""), r"the prompt is empty"),
    "temperature below 0": Row((*GENERATE, "--temperature", "-1"), r"temperature: -1\.0 must lie between 0 and 100"),
    "temperature nan": Row((*GENERATE, "--temperature", "nan"), r"temperature: nan must lie between 0 and 100"),
    "top-p of 0": Row((*GENERATE, "--top-p", "0"), r"top_p: 0\.0 must be above 0 and at most 1"),
    "top-k below -1": Row((*GENERATE, "--top-k", "-2"), r"top_k: -2 must lie between -1 and"),
    "min-p above 1": Row((*GENERATE, "--min-p", "2"), r"min_p: 2\.0 must lie between 0 and 1"),
    "penalty out of range": Row((*GENERATE, "--presence-penalty", "3"), r"presence_penalty: 3\.0 must lie between"),
    "no outputs": Row((*GENERATE, "--n", "0"), r"n: 0 must lie between 1 and"),
    "no tokens": Row(("generate", "demo", "hi", "--max-tokens", "0"), r"max_tokens: 0 must lie between 1 and"),
    "min above max": Row((*GENERATE, "--min-tokens", "5"), r"min_tokens: 5 is more than max_tokens \(1\)"),
    "empty stop": Row((*GENERATE, "--stop", ""), r"stop: an empty string would stop at once"),
    "fewer beams than outputs": Row((*GENERATE, "--beam-width", "2", "--n", "3"), r"2 beams cannot .* raise it to 3"),
    "too many logprobs": Row((*GENERATE, "--logprobs", "101"), r"logprobs: 101 must lie between 0 and 100"),
    "unknown cache": Row(("eval", "--cache", "bf61"), r"cache: 'bf61': 'bf61' is not known \(did you mean 'bf16'\?\)"),
    "format without its number": Row((*GENERATE, "--cache", "kivi"), r"cache: kivi= is not one of kivi=2, kivi=4"),
    "format with a number": Row((*GENERATE, "--cache", "int8=4"), r"cache: 'int8=4': int8 takes no value; write int8"),
    "layer that is not there": Row((*GENERATE, "--cache", "layers=99:int8"), r"cache: .* there is no layer 99"),
    "edges of nothing": Row((*GENERATE, "--cache", "edges=0:int8"), r"cache: .* edges needs a whole number"),
    "places that are none": Row((*GENERATE, "--cache", "edge=2:int8"), r"'edge' names no layers \(did you mean"),
    "two ways to store": Row((*GENERATE, "--cache", "int8+fp8"), r"cache: 'int8\+fp8' says twice how to store"),
    "sinks without a window": Row((*GENERATE, "--cache", "sinks=4"), r"cache: 'sinks=4': sinks go with a window"),
    "chunk and window": Row((*GENERATE, "--cache", "chunk=64+window=64"), r"a chunk and a window contradict"),
    "no calibration": Row((*GENERATE, "--cache", "oscar=no.st"), r"cannot read the calibration 'no\.st': No such file"),
    "no rank": Row((*GENERATE, "--cache", "lowrank=0@no.st"), r"cache: cannot read the calibration 'no\.st'"),
    "no share": Row((*GENERATE, "--cache", "lowrank=2.5@no.st"), r"cache: lowrank=2\.5@no\.st needs a share of each"),
    "no file for a rank": Row((*GENERATE, "--cache", "lowrank=0.5"), r"lowrank=0\.5 needs .*as lowrank=0\.5@FILE"),
    "no file for rotations": Row(
        (*GENERATE, "--cache", "oscar"), r"cache: oscar needs .* write oscar=FILE, .*kvtrove calibrate"
    ),
    "coefficients in nothing": Row((*GENERATE, "--cache", "lowrank=8,int9@f"), r"'int9' \(did you mean 'int8'\?\)"),
    "no calibration file": Row((*GENERATE, "--cache", "oscar=/dev/null"), r"'/dev/null' is no complete calibration"),
    "first tokens of nothing": Row(
        (*GENERATE, "--cache", "first=0:bf16+int8"), r"first needs a whole number of at least 1"
    ),
    "first tokens cut a block": Row((*GENERATE, "--cache", "first=40:bf16+int8"), r"block size 32: write first=64"),
    "first tokens in no format": Row(
        (*GENERATE, "--cache", "first=64+int8"), r"first=64 names how tokens are stored, .* first=64:bf16"
    ),
    "first tokens as the rest": Row((*GENERATE, "--cache", "first=32:int8+int8"), r"no layer reads first tokens"),
    "budget of nothing": Row(("eval", "--fit-bits", "0"), r"fit_bits: 0 must be above 0, such as 4\.5"),
    "two budgets": Row(("eval", "--fit-bits", "4", "--max-kl", "1"), r"max_kl: give fit_bits or max_kl, not both"),
    "window of nothing": Row(("eval", "--cache", "window=0"), r"window needs a whole number of at least 1"),
    "unknown part": Row(("eval", "--parts", "recal"), r"parts: 'recal' is not known \(did you mean 'recall'\?\)"),
    "length that is none": Row(("eval", "--lengths", "1k,x"), r"lengths: cannot read 'x' as a number of tokens"),
    "depth that is none": Row(("eval", "--depths", "0;1"), r"depths: cannot read '0;1'; write numbers with commas"),
    "depth above 1": Row(("eval", "--depths", "2"), r"depths: 2 must lie between 0 \(first\) and 1 \(last\)"),
    "length beyond the model": Row(("eval", "--lengths", "64k"), r"lengths: 65536 tokens are more than the \d+ that"),
    "missing text": Row(("eval", "--text", "no.txt"), r"text: cannot read no\.txt: No such file"),
    "missing needle": Row(("eval", "--needle", "no.toml"), r"needle: cannot read no\.toml: No such file"),
    "report without a folder": Row(
        ("eval", "--html", "no/x.html"), r"cannot write no/x\.html: there is no such folder"
    ),
    "state in a folder": Row(("eval", "--lengths", "512", "--state", "."), r"state: \. is no state of `kvtrove eval`"),
    "dtype word": Row((*GENERATE, "--dtype", "bf61"), r"dtype: 'bf61' is not one of auto, bfloat16, float16, float32"),
    "device word": Row((*GENERATE, "--device", "gpu"), r"device: 'gpu' is not one of auto, cpu, cuda, cuda:N"),
    "device that is not there": Row((*GENERATE, "--device", "cuda:99"), r"device: 'cuda:99' does not exist"),
    "no memory": Row((*GENERATE, "--kv", "0"), r"kv: '0' must be larger than zero"),
    "memory that is no size": Row((*GENERATE, "--kv", "banana"), r"kv: cannot read 'banana' as a size; .*8GiB"),
    "memory for less than a block": Row((*GENERATE, "--kv", "1"), r"needs \d+ blocks .* --kv \d"),
    "more memory than there is": Row((*GENERATE, "--kv", "900TiB"), r"kv: 921600GiB is more than .* [\d.]+GiB fits"),
    "memory said twice": Row((*GENERATE, "--kv", "1GiB", "--num-blocks", "9"), r"say the same thing twice"),
    "context that is no number": Row((*GENERATE, "--max-model-len", "long"), r"max_model_len: cannot read 'long'"),
    "context beyond the model": Row((*GENERATE, "--max-model-len", "9M"), r"9437184 is more than the \d+ positions"),
    "block size of 0": Row((*GENERATE, "--block-size", "0"), r"block_size: 0 must be a whole number of at least 1"),
    "step smaller than its sequences": Row((*GENERATE, "--max-num-batched-tokens", "8"), r"raise it to 256"),
    "prompt too long": Row(
        (*GENERATE, "--max-model-len", "16", "--file", "-"),
        r"the prompt has \d+ tokens, the context holds 16 .* at most 15 fit",
        stdin="word " * 99,
    ),
    "no heads": Row(("convert", "heads", "demo", "new", "--kv-heads", "0"), r"kv_heads: 0 must .* 2 kv heads.*give 1"),
    "more heads": Row(("convert", "heads", "demo", "new", "--kv-heads", "4"), r"kv_heads: 4 must .* be less; give 1"),
    "no model to convert": Row(("convert", "heads", "no/such", "new", "--kv-heads", "1"), r"no/such: there is no such"),
    "no folder for a model": Row(
        ("convert", "heads", "demo", "no/new", "--kv-heads", "1"), r"no/new: .*/no is no folder; make it first"
    ),
    "folder that exists": Row(("convert", "heads", "demo", ".", "--kv-heads", "1"), r"\.: exists already and is not"),
    "text that is not there": Row(
        ("convert", "heads", "demo", "new", "--kv-heads", "1", "--text", "no.txt"), r"text: cannot read no\.txt"
    ),
    "unknown environment variable": Row(
        GENERATE, r"KVTROVE_CHEK \(did you mean 'KVTROVE_CHECK'", env={"KVTROVE_CHEK": "1"}
    ),
    "check level in the environment": Row(
        GENERATE, r"KVTROVE_CHECK: '7' is not one of 0, 1, 2", env={"KVTROVE_CHECK": "7"}
    ),
    "check level": Row((*GENERATE, "--check", "7"), r"check: 7 is not one of 0 \(off\), 1 \(when idle\), 2"),
    "log level": Row(GENERATE, r"KVTROVE_LOG: 'loud' is not one of debug", env={"KVTROVE_LOG": "loud"}),
    "unknown chat command": Row(("chat", "-q"), r"/rest is no command; /help lists them", stdin="/rest\n"),
    "chat that outgrows its context": Row(
        ("chat", "-q", "--max-model-len", "16"), r"context full: .* the context holds 16", stdin="word " * 99
    ),
}


def refused(result: Any, message: str) -> None:
    assert result.code == 2
    [line] = result.err.splitlines()
    assert re.match(f"error: .*{message}", line), line


@pytest.mark.parametrize("name", COMMAND_ROWS)
def test_a_wrong_command_line_is_one_line_on_stderr(
    name: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = COMMAND_ROWS[name]
    monkeypatch.chdir(tmp_path)
    refused(run(*row.args, input=row.stdin, env=row.env), row.message)


# ---- checkpoints: a change to a good one ----


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def drop_tensor(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, path)


def truncate_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


CHECKPOINT_ROWS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), r"config\.json: the file is missing"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), r"config\.json: cannot be read as JSON"),
    "config of another kind": (lambda d: (d / "config.json").write_text("[]"), r"holds a list, expected a JSON object"),
    "no architecture": (
        edit_config(architectures=[], model_type=None),
        r"'architectures' is missing and 'model_type' is None; add one.*LlamaForCausalLM",
    ),
    "unknown architecture": (
        edit_config(architectures=["MambaForCausalLM"]),
        r"'MambaForCausalLM' is not supported.*Llama",
    ),
    "wrong size": (edit_config(hidden_size=48), r"has shape .* but config\.json asks for"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"no weights found; expected model\.safetensors"),
    "missing tensor": (drop_tensor, r"tensor 'model\.layers\.0\.mlp\.up_proj\.weight' is missing, expected shape"),
    "truncated weights": (truncate_weights, r"model\.safetensors: not a complete safetensors file"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), r"tokenizer\.json: no such file"),
    "broken tokenizer": (lambda d: (d / "tokenizer.json").write_text("{"), r"tokenizer\.json"),
}


@pytest.mark.parametrize("name", CHECKPOINT_ROWS)
def test_a_damaged_checkpoint_names_the_file(name: str, run: Callable[..., Any], checkpoint: Path) -> None:
    damage, message = CHECKPOINT_ROWS[name]
    damage(checkpoint)
    refused(run("generate", str(checkpoint), "hi", "--max-tokens", "1"), message)


def test_a_model_that_is_not_there(run: Callable[..., Any]) -> None:
    refused(run("generate", "no/such/model", "hi"), r"no/such/model: there is no such folder")


# ---- from Python ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_length": 5}, r"unknown setting 'max_model_length' \(did you mean 'max_model_len'"),
        ({"tensor_parallel_size": 4}, r"unknown setting 'tensor_parallel_size'"),
        ({"dtype": "int8"}, r"dtype: 'int8' is not one of"),
        ({"max_num_seqs": 1.5}, r"max_num_seqs: 1\.5 must be a whole number"),
        ({"cache": "lowrank=0.5@no.st"}, r"cache: cannot read the calibration 'no\.st': .*kvtrove calibrate"),
        ({"cache": "oscar"}, r"cache: oscar needs a calibration: write oscar=FILE"),
        ({"cache": "first=40:bf16+int8"}, r"no multiple of the block size 32: write first=64"),
        ({"kv_cache_memory_bytes": "5 bananas"}, r"kv: cannot read '5 bananas' as a size"),
    ],
)
def test_a_wrong_setting_is_a_config_error(demo_dir: Path, settings: dict[str, Any], message: str) -> None:
    from kvtrove import LLM

    with pytest.raises(ConfigError, match=message):
        LLM(demo_dir, **settings)


def test_a_missing_model_is_a_config_error(tmp_path: Path) -> None:
    from kvtrove import LLM

    with pytest.raises(ConfigError, match="there is no such folder"):
        LLM(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([0, 10**6], {}, r"prompt: token id 1000000 is not in the vocabulary \(0 to \d+\)"),
        ([-1], {}, r"prompt: token id -1 is not in the vocabulary"),
        ([[]], {}, r"the prompt is empty"),
        ("hi", {"logit_bias": {10**6: 1.0}}, r"logit_bias: token id 1000000 is not in the vocabulary"),
        ("hi", {"allowed_token_ids": [10**6]}, r"allowed_token_ids: token id 1000000 is not in the vocabulary"),
        (
            [1] * 63,
            {"max_tokens": 200, "beam_width": 8, "n": 8},
            r"8 beams need 256 blocks .* which has 32 \(at most \d+ tok",
        ),
    ],
)
def test_a_request_that_can_never_be_served(demo_dir: Path, prompt: Any, params: dict[str, Any], message: str) -> None:
    from kvtrove import LLM

    llm = LLM(demo_dir, block_size=8, num_blocks=32)
    with pytest.raises(RequestError, match=message):
        llm.generate(["fine", prompt[0]] if prompt == [[]] else prompt, SamplingParams(**params), use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    assert llm.llm_engine.stats().kv.used == 0


# ---- what is around the line ----


def test_debug_logging_adds_the_traceback(run: Callable[..., Any]) -> None:
    result = run("generate", "no/such/model", "hi", env={"KVTROVE_LOG": "debug"})
    assert result.code == 2
    assert "Traceback (most recent call last)" in result.err
    assert result.err.splitlines()[-1].startswith("error: no/such/model: there is no such folder")


def test_as_a_process_it_is_exit_code_2_and_nothing_on_stdout(shell: Callable[..., Any]) -> None:
    result = shell("kvtrove generate no/such/model hi")
    refused(result, "no/such/model: there is no such folder")
    assert result.out == ""


def test_a_reader_that_leaves_early_is_no_error(shell: Callable[..., Any]) -> None:
    result = shell("set +o pipefail; kvtrove generate --help | head -1; kvtrove generate --help | true")
    assert (result.code, result.err) == (0, "")
