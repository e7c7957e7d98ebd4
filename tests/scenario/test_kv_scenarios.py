"""Runs tests/scenario/kv/*.txt: the cache manager's behaviour as stories, one page each.

The first line of a file says what it shows. The setting comes next, then one command a line (`#` starts a comment):

    block_size 16 | blocks 10 | groups full window=32 sinks=4+window=8 chunk=64 | caching off   (the setting)
    req NAME RANGE... [salt=S] [limit=N]   a prompt arrives (0..48 or 0..32 100..116) and takes over what it can reuse
    more NAME RANGE...                     it gets further tokens
    step [NAME [N]]                        everyone (or one) computes what is left (or N tokens of it), in one step
    room NAME N                            blocks for N tokens are allocated, nothing is computed
    fork NAME CHILD | truncate NAME N | free NAME | pin NAME PIN | unpin PIN | reset
    expect hit N                           tokens that the last req reused
    expect free|cached|used|evictions|duplicates|copies N
    expect table NAME GROUP x.xx           which entries of a block table are held (- for an empty table)
    expect shared A B N                    blocks that are in the tables of both
    expect fail COMMAND                    the command is refused for want of blocks and changes nothing
    expect error COMMAND                   the command is a mistake of the caller

After every command, each live token of each sequence must be found in the row that its table names (as the echo
runner wrote it), and every invariant holds.
"""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.pins import Pin
from kvtrove.kv.recipe import recipe
from kvtrove.kv.retention import Retention
from kvtrove.kv.rows import Copy, RowOp
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.kv.table import SequenceKV
from kvtrove.scheduler.output import ScheduledSequence, SchedulerOutput
from tests.steps import StepRunner, token_values

FILES = sorted((Path(__file__).parent / "kv").glob("*.txt"))
SETTINGS = ("block_size", "blocks", "groups", "caching")


def retention(word: str) -> Retention:
    """Of a recipe: `window=32`, `sinks=4+window=8`, `chunk=64`; `full` keeps everything."""
    whole = KVCacheSpec((LayerKV(0, 1, 1, 1, ECHO),), 1)
    return recipe("auto" if word == "full" else word)(whole).layers[0].retention


def token_ids(words: list[str]) -> array[int]:
    """`0..48 100` -> 0, 1, ..., 47, 100."""
    ids: array[int] = array("i")
    for word in words:
        first, dots, last = word.partition("..")
        ids.extend(range(int(first), int(last) if dots else int(first) + 1))
    return ids


class Story:
    def __init__(self, setting: dict[str, list[str]]) -> None:
        layers = (LayerKV(i, 1, 1, 1, ECHO, retention(word)) for i, word in enumerate(setting.get("groups", ["full"])))
        self.size = int(setting["block_size"][0])
        num_blocks = int(setting["blocks"][0])
        spec = KVCacheSpec(tuple(layers), self.size)
        self.runner = StepRunner(spec, Arena(spec, num_blocks))
        self.manager = KVCacheManager(
            spec,
            num_blocks,
            enable_prefix_caching=setting.get("caching") != ["off"],
            check=2,
            crc=self.runner.arena.crc,
            clock=lambda: 0.0,
        )
        self.kvs: dict[str, SequenceKV] = {}
        self.tokens: dict[str, array[int]] = {}
        self.pins: dict[str, Pin] = {}
        self.ops: list[RowOp] = []
        self.hit = 0

    def run(self, words: list[str]) -> bool | None:
        """Execute one command; False means that blocks are short."""
        done: bool | None = getattr(self, f"do_{words[0]}")(*words[1:])
        self.ops += self.manager.take_ops()
        self.read_back()
        return done

    def do_req(self, name: str, *words: str) -> bool:
        options = dict(word.split("=") for word in words if "=" in word)
        tokens = self.tokens[name] = token_ids([word for word in words if "=" not in word])
        kv = self.kvs[name] = self.manager.open(options.get("salt", "").encode())
        match = self.manager.match(kv, tokens, int(options.get("limit", len(tokens) - 1)))
        self.hit = match.num_tokens
        return self.manager.allocate(kv, 0, match)

    def do_more(self, name: str, *words: str) -> None:
        self.tokens[name].extend(token_ids(list(words)))

    def do_room(self, name: str, num: str) -> bool:
        return self.manager.allocate(self.kvs[name], int(num))

    def do_step(self, only: str | None = None, num: str | None = None) -> bool:
        work = {}
        for name, kv in self.kvs.items():
            if only in (None, name):
                work[name] = len(self.tokens[name]) - kv.num_computed if num is None else int(num)
                if not self.manager.allocate(kv, work[name]):
                    return False
        scheduled = []
        for i, (name, n) in enumerate(work.items()):
            kv, start = self.kvs[name], self.kvs[name].num_computed
            scheduled.append(ScheduledSequence(i, self.tokens[name][start : start + n], start, kv.block_ids()))
        ops, self.ops = [*self.ops, *self.manager.take_ops()], []
        self.runner.execute(SchedulerOutput(scheduled, ops), token_values)
        for name, n in work.items():
            self.manager.commit(self.kvs[name], self.tokens[name], n)
        return True

    def do_fork(self, name: str, child: str) -> bool:
        kv = self.manager.fork(self.kvs[name])
        if kv is None:
            return False
        self.kvs[child], self.tokens[child] = kv, self.tokens[name][:]
        return True

    def do_truncate(self, name: str, num: str) -> bool:
        done = self.manager.truncate(self.kvs[name], int(num))
        if done is not None:
            del self.tokens[name][done:]
        return done is not None

    def do_free(self, name: str) -> None:
        self.manager.free(self.kvs.pop(name))

    def do_pin(self, name: str, pin: str) -> None:
        self.pins[pin] = self.manager.pin(self.kvs[name])

    def do_unpin(self, pin: str) -> None:
        self.manager.unpin(self.pins[pin])

    def do_reset(self) -> None:
        self.manager.reset_prefix_cache()

    def do_expect(self, what: str, *words: str) -> None:
        if what == "fail":
            before = self.manager.stats()
            assert self.run(list(words)) is False, "it was expected to fail"
            assert self.manager.stats() == before, "it failed and left traces"
        elif what == "error":
            with pytest.raises(ValueError, match=r"\w"):
                self.run(list(words))
        elif what == "table":
            name, group, pattern = words
            held = "".join(".x"[int(i >= 0)] for i in self.kvs[name].block_ids()[int(group)])
            assert (held or "-") == pattern, f"it is {held}"
        elif what == "shared":
            a, b = ({int(i) for ids in self.kvs[name].block_ids() for i in ids if i >= 0} for name in words[:2])
            assert len(a & b) == int(words[2])
        else:
            own = {"hit": self.hit, "copies": sum(isinstance(op, Copy) for op in self.ops)}
            value = own[what] if what in own else getattr(self.manager.stats(), what)
            assert value == int(words[0]), f"it is {value}"

    def read_back(self) -> None:
        spec = self.manager.spec
        for layer in spec.layers:
            tokens = self.runner.planes(layer, self.ops)[0][:, :, 0, 0]
            for name, kv in self.kvs.items():
                ids = kv.block_ids()[spec.group_of[layer.layer]]
                for position in (p for span in layer.retention.live(kv.num_computed) for p in span):
                    found = tokens[ids[position // self.size], position % self.size]
                    assert found == self.tokens[name][position], f"token {position} of {name} in layer {layer.layer}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_story(file: Path) -> None:
    lines = [(number, line.split("#")[0].split()) for number, line in enumerate(file.read_text().splitlines(), 1)]
    commands = [(number, words) for number, words in lines[1:] if words]
    story = Story({words[0]: words[1:] for _, words in commands if words[0] in SETTINGS})
    for number, words in commands:
        if words[0] not in SETTINGS:
            try:
                assert story.run(words) is not False, "blocks are short"
            except Exception as error:
                error.add_note(f"{file.name}:{number}: {' '.join(words)}")
                raise


def test_every_story_begins_with_what_it_shows() -> None:
    assert len(FILES) >= 18
    assert all(file.read_text().splitlines()[0].strip().endswith(".") for file in FILES)
