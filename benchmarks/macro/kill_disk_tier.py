"""Kill -9 a process that publishes rows to a disk tier, again and again, and look at what is left each time.

    python benchmarks/macro/kill_disk_tier.py [--kills 200] [--durability strict] [--seed 1] [--size 4GiB] [--json FILE]

A child puts chains of rows, reads some, deletes some, and writes down which tickets were OK (a pipe to the parent).
It is killed with SIGKILL after a random time, a tenth of them as soon as it has opened the directory. The parent then
opens it: whatever is found must be right, and every row that was OK and not deleted must be found, unless the tier is
more than half full, when rows may have been evicted (try --size 24MiB). Every 20 kills begin with an empty directory.
Exits with 1 at the first row that is lost or wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kvtrove.cli.output import write_json
from kvtrove.config import parse_size
from kvtrove.kv.tiers.disk import DiskSettings, DiskStore
from kvtrove.kv.tiers.disk_log import DURABILITIES
from kvtrove.kv.tiers.store import Outcome, Ticket

EVENT = struct.Struct("<cQ")  # b"o": the row's ticket was OK, b"d": it will be deleted
CHAIN = 8  # rows
KEPT_WAITING = 4  # tickets
KILLS_OF_A_DIRECTORY = 20


def key(i: int) -> bytes:
    return i.to_bytes(32, "little")


def row(i: int) -> memoryview:
    return memoryview(bytearray(random.Random(i).randbytes(3000 + i % 7 * 2111)))


def settings(arguments: argparse.Namespace, path: str) -> DiskSettings:
    return DiskSettings(path, parse_size(arguments.size), arguments.durability, timeout=30.0)


def publish(arguments: argparse.Namespace) -> None:
    """The child: never ends by itself."""
    store = DiskStore(settings(arguments, arguments.child), "kill", b"kill")
    number = arguments.first
    waiting: dict[int, tuple[Ticket, range]] = {}
    while True:
        chain = range(number, number + CHAIN)
        number += CHAIN
        ticket = store.put([key(i) for i in chain], [row(i) for i in chain])
        waiting[id(ticket)] = ticket, chain
        if number % 40 == 0:
            os.write(1, EVENT.pack(b"d", chain[0] - 3 * CHAIN))
            store.delete([key(chain[0] - 3 * CHAIN)])
            store.get([key(chain[0] - 1)], [memoryview(bytearray(row(chain[0] - 1).nbytes))])
        while len(waiting) > KEPT_WAITING:
            for back in store.poll():
                if id(back) in waiting:
                    _, done = waiting.pop(id(back))
                    good = [i for i, o in zip(done, back.outcomes, strict=True) if o is Outcome.OK]
                    os.write(1, b"".join(EVENT.pack(b"o", i) for i in good))
            time.sleep(0.0002)


def killed(arguments: argparse.Namespace, path: str, first: int, seconds: float) -> tuple[list[int], set[int]]:
    """Run a child for some seconds and kill it: (rows whose ticket was OK in order, rows deleted)."""
    command = [sys.executable, __file__, "--child", path, "--first", str(first)]
    command += ["--durability", arguments.durability, "--size", arguments.size]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    select.select([child.stdout], [], [], 20)  # the first event, or the time is over before: both are fine
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    content = child.stdout.read()
    child.wait()
    safe: list[int] = []
    deleted: set[int] = set()
    for kind, i in EVENT.iter_unpack(content[: len(content) // EVENT.size * EVENT.size]):
        if kind == b"o":
            safe.append(i)
        else:
            deleted.add(i)
    return safe, deleted


def look(store: DiskStore, numbers: list[int]) -> dict[int, bool | None]:
    """True: right, False: wrong, None: not there."""
    rows = {i: memoryview(bytearray(row(i).nbytes)) for i in numbers}
    ticket = store.get([key(i) for i in numbers], [rows[i] for i in numbers])
    while not ticket.done:
        store.poll()
        time.sleep(0.0005)
    ok = [outcome is Outcome.OK for outcome in ticket.outcomes]
    return {i: rows[i] == row(i) if good else None for i, good in zip(numbers, ok, strict=True)}


def kill_and_look(arguments: argparse.Namespace, path: str, draw: random.Random, figures: dict[str, Any]) -> None:
    """One directory, some kills."""
    first, published, deleted = 0, set[int](), set[int]()
    for _ in range(min(KILLS_OF_A_DIRECTORY, arguments.kills - int(figures["kills"]))):
        safe, gone = killed(
            arguments, path, first, 0.0 if draw.random() < 0.1 else draw.uniform(0, arguments.most_seconds)
        )
        first = (max([first, *safe]) // CHAIN + 100) * CHAIN
        published |= set(safe)
        deleted |= gone
        started = time.perf_counter()
        store = DiskStore(settings(arguments, path), "kill", b"kill")
        figures["open_ms"] = max(figures["open_ms"], round(1000 * (time.perf_counter() - started), 1))
        answers = look(store, sorted(published - deleted))
        missing = [i for i, answer in answers.items() if answer is None]
        may_evict = store.figures()[0].nbytes > store.settings.size // 2
        store.close()
        figures["kills"] += 1
        figures["rows_ok"] += len(safe)
        figures["rows_found"] += len(answers) - len(missing)
        figures["rows_evicted" if may_evict else "lost"] += len(missing)
        figures["wrong"] += sum(answer is False for answer in answers.values())
        if figures["lost"] or figures["wrong"]:
            print(f"kill {figures['kills']:.0f}: missing {missing[:20]}", file=sys.stderr)
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--durability", choices=DURABILITIES, default="strict")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", default="4GiB")
    parser.add_argument("--most-seconds", type=float, default=0.25, help="that a child lives after its first row")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        publish(arguments)
    draw = random.Random(arguments.seed)
    figures = dict.fromkeys(("kills", "rows_ok", "rows_found", "rows_evicted", "lost", "wrong", "open_ms"), 0)
    while figures["kills"] < arguments.kills and not figures["lost"] + figures["wrong"]:
        with tempfile.TemporaryDirectory(prefix="kvtrove-kill-") as folder:
            kill_and_look(arguments, f"{folder}/tier", draw, figures)
    print(json.dumps(figures))
    if arguments.json:
        write_json(figures, str(arguments.json))
    return 1 if figures["lost"] or figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
