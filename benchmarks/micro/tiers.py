"""What the tiers read and write per second, beside a plain read of as many bytes in blocks of the same size.

    python benchmarks/micro/tiers.py [--dir DIR] [--row 360KiB] [--rows 700] [--rounds 5] [--json FILE]

Every round reads the same bytes in turn: with dd (blocks of 4 MiB, as the tier's reads) and with `get` from disk, both
after the system was told to drop the files from its page cache (`cold`), and again from there (`warm`); then with `get`
from memory, plain and with zstd. Rows are half noise and half repetition unless --rows-of names a file of raw bytes.
`put` is what the caller waits for, `written` what the disk gets with each durability. `open` is the time until a
directory with 6,250 rows, 200,000 tokens in blocks of 32, can be asked. Medians over all rounds.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from kvtrove.cli.output import write_json
from kvtrove.config import parse_size
from kvtrove.kernels import crc32c
from kvtrove.kv.tiers.disk import DiskSettings, DiskStore
from kvtrove.kv.tiers.disk_log import DURABILITIES
from kvtrove.kv.tiers.ram import RamSettings, RamStore
from kvtrove.kv.tiers.store import BlockStore, Ticket

GIB = 2**30


def key(i: int) -> bytes:
    return i.to_bytes(32, "little")


def wait(store: BlockStore, ticket: Ticket) -> None:
    while not ticket.done:
        store.poll()
        time.sleep(0.0001)
    assert ticket.ok, set(ticket.outcomes)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def drop(path: Path) -> None:
    """Ask the system to forget its copies of a directory's files."""
    for file in path.glob("*.rows"):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def dd(path: Path) -> None:
    for file in sorted(path.glob("*.rows")):
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=4M", "status=none"], check=True)


def reading(folder: Path, rows: list[memoryview], rounds: int) -> dict[str, float]:
    """GiB per second."""
    keys = [key(i) for i in range(len(rows))]
    nbytes = sum(row.nbytes for row in rows)
    into = [memoryview(bytearray(row.nbytes)) for row in rows]
    disk = DiskStore(DiskSettings(str(folder), 4 * nbytes + GIB, in_flight=2 * nbytes))
    ram = RamStore(RamSettings(2 * nbytes))
    small = RamStore(RamSettings(2 * nbytes, "zstd", timeout=60))
    stores: dict[str, BlockStore] = {"ram": ram, "ram, zstd": small}
    for store in (disk, ram, small):
        wait(store, store.put(keys, rows))
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        drop(folder)
        found["dd, cold"].append(seconds(lambda: dd(folder)))
        drop(folder)
        found["disk, cold"].append(seconds(lambda: wait(disk, disk.get(keys, into))))
        found["dd, warm"].append(seconds(lambda: dd(folder)))
        found["disk, warm"].append(seconds(lambda: wait(disk, disk.get(keys, into))))
        for name, store in stores.items():
            found[name].append(seconds(lambda store=store: wait(store, store.get(keys, into))))  # type: ignore[misc]
        found["crc32c"].append(seconds(lambda: [crc32c(row) for row in rows]))
    assert into == rows
    figures = {name: nbytes / GIB / statistics.median(took) for name, took in found.items()}
    figures["zstd makes it smaller by"] = nbytes / small.figures()[0].nbytes
    for store in (disk, ram, small):
        store.close()
    return figures


def writing(folder: Path, rows: list[memoryview], rounds: int) -> dict[str, float]:
    """put: microseconds of the caller per row. written: GiB per second until the tickets are done."""
    figures: dict[str, float] = {}
    nbytes = sum(row.nbytes for row in rows)
    for durability in DURABILITIES:
        puts, rates = [], []
        for n in range(rounds):
            settings = DiskSettings(
                str(folder / f"{durability}{n}"), 2 * nbytes + GIB, durability, in_flight=2 * nbytes
            )
            store = DiskStore(settings)
            tickets: list[Ticket] = []
            started = time.perf_counter()
            for i, row in enumerate(rows):  # as blocks are sealed: one by one
                before = time.perf_counter()
                tickets.append(store.put([key(i)], [row]))
                puts.append(time.perf_counter() - before)
            while not all(ticket.done for ticket in tickets):
                store.poll()
                time.sleep(0.001)
            rates.append(nbytes / GIB / (time.perf_counter() - started))
            store.close()
        figures[f"put, {durability}"] = 1e6 * statistics.median(puts)
        figures[f"written, {durability}"] = statistics.median(rates)
    return figures


def opening(folder: Path, rounds: int) -> float:
    """Milliseconds."""
    settings = DiskSettings(str(folder / "open"), 4 * GIB, in_flight=GIB)
    store = DiskStore(settings)
    row = memoryview(bytearray(16 << 10))
    wait(store, store.put([key(i) for i in range(6250)], [row] * 6250))
    store.close()
    took = []
    for _ in range(rounds):
        opened: list[DiskStore] = []
        took.append(seconds(lambda opened=opened: opened.append(DiskStore(settings))))  # type: ignore[misc]
        assert opened[0].figures()[0].entries == 6250
        opened[0].close()
    return 1000 * statistics.median(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="on the disk to measure; a temporary folder else")
    parser.add_argument("--row", default="360KiB", help="bytes of a row")
    parser.add_argument("--rows", type=int, default=700)
    parser.add_argument("--rows-of", type=Path, help="raw bytes to cut rows from")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = parse_size(arguments.row)
    source = arguments.rows_of.read_bytes() if arguments.rows_of else None
    noise = random.Random(1)
    rows = []
    for i in range(arguments.rows):
        at = i * size % max(1, len(source) - size) if source else 0
        half = noise.randbytes(size // 2)
        rows.append(memoryview(bytearray(source[at : at + size] if source else half + half[: size - size // 2])))
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        figures = reading(Path(folder) / "read", rows, arguments.rounds)
        figures |= writing(Path(folder), rows[:200], max(1, arguments.rounds // 2))
        figures["open, ms"] = opening(Path(folder), arguments.rounds)
    for name, value in figures.items():
        unit = "us a row" if name.startswith("put") else "GiB/s" if "," in name or name in ("ram", "crc32c") else ""
        print(f"{name:26} {value:8.2f} {unit if not name.endswith('ms') else ''}")
    if arguments.json:
        write_json(figures, str(arguments.json))
    return 0


if __name__ == "__main__":
    sys.exit(main())
