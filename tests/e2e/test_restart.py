"""A conversation outlives the process that held it: kill -9, start again, and the same chat goes on from the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TURNS = ["Tell me about rivers. " * 20, "And what of the sea? " * 12, "Then of rain. " * 8]
CHAT = """
import json, os, signal, sys, time
from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir

directory, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
history, turns = json.loads(sys.argv[4]), json.loads(sys.argv[5])
llm = LLM(str(demo_model_dir()), dtype="float32", kv_dir=directory or None, num_blocks=400, block_size=16)
told = []
for turn in range(first, last):
    history += llm.get_tokenizer().encode(turns[turn])
    [answer] = llm.generate([list(history)], SamplingParams(max_tokens=24, temperature=0))
    history += answer.outputs[0].token_ids
    told.append([answer.outputs[0].token_ids, answer.metrics.reused_from, len(answer.prompt_token_ids)])
end = time.monotonic() + 20
while llm.llm_engine.tend() and time.monotonic() < end:  # as a server does between requests
    time.sleep(0.01)
print(json.dumps([history, told]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def chat(directory: str, first: int, last: int, history: list[int]) -> tuple[list[int], list[list]]:
    """Some turns of the conversation in a process that is killed at the end: (all tokens so far, what was answered)."""
    arguments = [directory, str(first), str(last), json.dumps(history), json.dumps(TURNS)]
    done = subprocess.run(
        [sys.executable, "-c", CHAT, *arguments], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    history, told = json.loads(done.stdout.splitlines()[-1])
    return history, told


@pytest.mark.timeout(300)
def test_a_chat_goes_on_after_kill_9(tmp_path: Path) -> None:
    _, undisturbed = chat("", 0, 3, [])
    history, before = chat(str(tmp_path), 0, 2, [])
    _, after = chat(str(tmp_path), 2, 3, history)
    assert [answer for answer, _, _ in before + after] == [answer for answer, _, _ in undisturbed]
    [(_, reused, num_prompt)] = after
    assert reused["disk"] >= 0.95 * (len(history) - 16), "all but the last, unfinished block comes from the disk"
    assert num_prompt > len(history)
