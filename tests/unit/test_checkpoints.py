"""Sequences as files: what continues is what would have come, and nothing foreign is taken in."""

from __future__ import annotations

import os
import time
from array import array
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kvtrove import LLM, SamplingParams
from kvtrove.checkpoints import BACKUP, BACKUP_SECONDS
from kvtrove.config import ConfigError, EngineConfig
from kvtrove.demo import demo_model_dir
from kvtrove.engine import Engine
from kvtrove.kv.retention import Full, SinksAndWindow, SlidingWindow
from kvtrove.kv.snapshot import Tail, put_back, snapshot
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.kv.tiers.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from kvtrove.models.decoder import Model
from kvtrove.request import RequestError
from kvtrove.scheduler.limits import SchedulerLimits
from tests.echo import EchoEngine, echo_spec

PROMPT = list(range(40, 140))
DRAWS = SamplingParams(max_tokens=30, temperature=0.9, seed=5, ignore_eos=True, detokenize=False)


@cache
def weights() -> Model:
    return Engine(EngineConfig(str(demo_model_dir()), dtype="float32", num_blocks=1)).runner.model


def started(**settings: Any) -> LLM:
    """An engine of its own on the weights of all."""
    config = EngineConfig(str(demo_model_dir()), dtype="float32", num_blocks=40, block_size=16, check=1, **settings)
    return LLM.from_engine(Engine(config, model=weights()))


def answer(llm: LLM, prompt: list[int] = PROMPT, params: SamplingParams = DRAWS) -> list[int]:
    return llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids


def kept(llm: LLM, path: Path, drawn: int) -> None:
    """A checkpoint of a stream that is then given up."""
    stream = llm.stream(PROMPT, DRAWS)
    output = next(o for o in stream if len(o.outputs[0].token_ids) >= drawn)
    llm.checkpoint(path, request_id=output.request_id)
    stream.close()


@pytest.mark.parametrize("recipe", ["auto", "kivi=2"])  # the second encodes whole blocks, and has seats
def test_a_restored_request_continues_in_the_midst_of_a_block(tmp_path: Path, recipe: str) -> None:
    path = tmp_path / "a.safetensors"
    with started(cache=recipe) as llm:
        whole = answer(llm)
        kept(llm, path, 17)
    with started(cache=recipe) as llm:
        restored = llm.restore(path)
        assert (list(restored.tokens), restored.num_tokens) == (PROMPT + whole[:17], 112)
        outputs = list(llm.stream(PROMPT, DRAWS))
        assert outputs[-1].outputs[0].token_ids == whole
        assert len(outputs) == 13, "17 of the 30 tokens are there at once, with the first of those that are drawn"
        assert outputs[-1].metrics is not None
        assert outputs[-1].metrics.num_continued_tokens == 17
        assert llm.llm_engine.checkpoints.counts["continued tokens"] == 17
        assert answer(llm) == whole, "a checkpoint serves one request; the next draws for itself"


def test_only_the_same_request_continues_and_a_prompt_is_kept_without_one(tmp_path: Path) -> None:
    path, prompt = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    with started() as llm:
        whole = answer(llm)
        kept(llm, path, 17)
        llm.checkpoint(prompt, prompt=PROMPT)
        with pytest.raises(RequestError, match="nothing of this prompt is cached"):
            llm.checkpoint(tmp_path / "c", prompt=[7] * 40)
        with pytest.raises(RequestError, match="no unfinished request or session is called 'x'"):
            llm.checkpoint(tmp_path / "c", request_id="x")
    with started() as llm:
        back = llm.restore(prompt)
        assert (list(back.tokens), back.num_tokens, back.continues) == (PROMPT, 96, False)
        llm.restore(path)
        other = SamplingParams(max_tokens=30, temperature=0.8, seed=5, ignore_eos=True, detokenize=False)
        assert llm.generate([PROMPT], other, use_tqdm=False)[0].metrics.num_continued_tokens == 0
        with pytest.raises(CheckpointError, match="of another tenant or salt"):
            llm.restore(path, cache_salt="mine")
        assert answer(llm) == whole
    with started(cache="int8") as llm, pytest.raises(CheckpointError, match="the cache settings that wrote it"):
        llm.restore(path)


def test_backups_are_written_taken_up_and_cleared_away(tmp_path: Path) -> None:
    """A crash is an engine that is never closed; docs say what else there is to it, and tests/e2e kills a server."""
    with started() as llm:
        whole = answer(llm)
    crashed = started(kv_dir=str(tmp_path / "kv"), backup_interval=8)
    stream = crashed.stream(PROMPT, DRAWS)
    while crashed.llm_engine.checkpoints.counts["written"] < 2:
        next(stream)
    crashed.llm_engine.add("twin", PROMPT, DRAWS)
    assert crashed.llm_engine.scheduler.requests["twin"].metrics.num_continued_tokens == 0, "the first one goes on"
    crashed.llm_engine.abort("twin")
    folder = tmp_path / "kv" / "checkpoints"
    [file] = folder.iterdir()
    copy = file.read_bytes()
    stream.close()
    crashed.close()
    assert list(folder.iterdir()) == [], "a request that has ended leaves nothing"
    file.write_bytes(copy)
    with started(kv_dir=str(tmp_path / "kv"), backup_interval=8) as llm:
        [output] = llm.generate([PROMPT], DRAWS, use_tqdm=False)
        assert output.outputs[0].token_ids == whole
        assert output.metrics.num_continued_tokens in (8, 9, 16, 17), "the disk may skip one when it is slow"
        assert output.metrics.reused_from == {"disk": 100}, "of the prompt, the tail included"
    assert list(folder.iterdir()) == []
    file.write_bytes(copy[:-1] + b"x")
    with started(kv_dir=str(tmp_path / "kv"), backup_interval=8) as llm:
        assert answer(llm) == whole, "a damaged backup is none"
    half = file.with_name(f"{file.name}.123.part")
    for old in (file, half):
        old.write_bytes(copy)
        os.utime(old, (time.time() - BACKUP_SECONDS - 60,) * 2)
    started(kv_dir=str(tmp_path / "kv"), backup_interval=8).close()
    assert not list(folder.iterdir()), "nobody comes back for an old one"
    assert file.suffix == BACKUP


def test_a_disk_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with started(checkpoint_dir=str(tmp_path / "file"), backup_interval=4) as llm, started() as other:
        assert answer(llm) == answer(other)
        assert llm.llm_engine.checkpoints.counts["failed"]


def test_a_backup_needs_a_place() -> None:
    with pytest.raises(ConfigError, match="backup_interval: 8 needs a place for its files; give kv_dir"):
        EngineConfig("demo", backup_interval=8)


@pytest.mark.parametrize("spec", [echo_spec(4, Full(), SlidingWindow(6)), echo_spec(4, SinksAndWindow(3, 5))])
@pytest.mark.parametrize("steps", [1, 3, 4, 6])
def test_every_length_and_window_goes_on_elsewhere(spec: KVCacheSpec, steps: int) -> None:
    """The books of two echo engines, invariants checked after every call: rows and tail move between them."""
    params = SamplingParams(max_tokens=12)
    first, again = (EchoEngine(spec, 40, SchedulerLimits(8, 64)) for _ in range(2))
    first.add("a", range(100, 117), params)
    for _ in range(steps):
        first.step()
    [seq] = first.requests["a"].sequences
    rows, held = first.model.runner.rows, snapshot(first.kv, seq.kv)
    chain, tokens = seq.kv.chain.copy(len(seq.kv.chain.keys)), array("i", seq.tokens)
    content = list(zip(held.sealed, rows.read([row for _, _, row in held.sealed]), strict=True))
    tail = Tail(held.num_computed, rows.read(held.tail), rows.read_seat(held.seat))
    put_back(again.kv, chain, [(group, i, row) for (group, i, _), row in content])
    again.model.runner.rows.settle(again.kv)
    request = again.add("a", range(100, 117), params)
    [twin] = request.sequences
    twin.tokens.extend(tokens[17:])
    twin.tail = tail
    computed = again.model.computed
    again.step()
    assert again.model.computed - computed == 1, "one token is computed: the next"
    first.run()
    again.run()
    assert again.outputs("a") == first.outputs("a")
    assert again.kv.stats().used == 0


def test_an_archive_is_smaller_and_serves_only_those_who_name_it(tmp_path: Path) -> None:
    exact, small = tmp_path / "exact.safetensors", tmp_path / "small.safetensors"
    with started() as llm:
        whole = answer(llm)
        llm.checkpoint(exact, prompt=PROMPT)
        llm.checkpoint(small, prompt=PROMPT, archive="int8")
        with pytest.raises(ConfigError, match="archive: 'kivi=2' changes more than how a token is stored"):
            llm.checkpoint(tmp_path / "c", prompt=PROMPT, archive="kivi=2")
    assert small.stat().st_size < 0.5 * exact.stat().st_size
    with started() as llm:
        back = llm.restore(small)
        assert (back.num_tokens, back.cache_salt, back.continues) == (96, "~int8", False)
        [plain] = llm.generate([PROMPT], DRAWS, use_tqdm=False)
        assert (plain.num_cached_tokens, plain.outputs[0].token_ids) == (0, whole), "the golden rule holds"
        named = {"prompt_token_ids": PROMPT, "cache_salt": back.cache_salt}
        [lossy] = llm.generate([named], DRAWS, use_tqdm=False)
        assert lossy.num_cached_tokens == 96
        assert len(lossy.outputs[0].token_ids) == 30


def test_an_archive_of_low_rank_is_off_by_what_it_says(tmp_path: Path) -> None:
    """All directions cost no more than rounding to 8 bits and half precision does; fewer cost more and take less."""
    size, error = {}, {}
    with started() as llm:
        whole = answer(llm)
        for share in ("0.999", "0.5", "0.2"):
            llm.checkpoint(tmp_path / share, prompt=PROMPT, archive=f"lowrank={share}+int8")
        for word in ("lowrank=0.5", "lowrank=0.0+int8", "lowrank=2+int8", "lowrank=0.5+int3"):
            with pytest.raises(ConfigError, match=r"archive: .* lowrank=0\.5\+int8"):
                llm.checkpoint(tmp_path / "c", prompt=PROMPT, archive=word)
    for share in ("0.999", "0.5", "0.2"):
        with started() as llm:
            back = llm.restore(tmp_path / share)
            assert (back.num_tokens, back.archive) == (96, f"lowrank={share}+int8")
            size[share], error[share] = (tmp_path / share).stat().st_size, back.error
            named = {"prompt_token_ids": PROMPT, "cache_salt": back.cache_salt}
            [lossy] = llm.generate([named], DRAWS, use_tqdm=False)
            assert lossy.num_cached_tokens == 96
            if share == "0.999":
                assert lossy.outputs[0].token_ids[:8] == whole[:8]
    assert error["0.999"] < 0.01 < error["0.5"] < error["0.2"] < 1
    assert size["0.999"] > size["0.5"] > size["0.2"]


def test_a_basis_that_is_cut_or_foreign_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small"
    with started() as llm:
        answer(llm)
        llm.checkpoint(path, prompt=PROMPT, archive="lowrank=0.5+int8")
    made = read_checkpoint(path)
    wrong = [(made.seat[:-1], made.format_id), (bytes(4) + bytes(made.seat[4:]), made.format_id)]
    wrong += [(bytes(made.seat) + b"x", made.format_id), (made.seat, made.format_id.replace("0.5", "9,5"))]
    with started() as llm:
        for seat, word in wrong:
            write_checkpoint(path, replace(made, seat=seat, format_id=word))
            with pytest.raises(CheckpointError, match="small cannot be restored: "):
                llm.restore(path)
