"""A running server whose disk fails under it, in every way that can be had on one machine. Needs Linux and root.

    python benchmarks/macro/disk_faults.py [FAULT ...] [--model demo] [--json FILE]

For each fault a server is started on a directory, as an ordinary user; some chats fill it. Then the fault begins, and
the same chats and new ones are sent: each must be answered, as before, within --patience seconds. It ends, and they
are sent once more. What the server says of it meanwhile (counters by reason, notices) is printed as JSON. Exit code 1
when an answer is missing, late or another one, a block stays in use, or nothing was said.

    full          a file system of its own, filled to the last block
    read-only     an ext4 that the kernel makes read-only after an error
    permission    the directory belongs to somebody else, chmod 500; then also its segments, chmod 0
    frozen        an ext4 on which writes wait (fsfreeze)
    hang          reads, writes and syncs wait for a minute (a library loaded before all others)
    clock         the wall clock jumps a year forth, and a year back
    hang-up       slow reads, and a hundred clients that leave while their prefixes are loaded; on a disk that is full
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from kvtrove.cli.output import write_json

NOBODY = 65534
FLAGS = ("--num-blocks", "96", "--block-size", "16", "--no-warm-up", "--log-level", "warning")
SIZE = "16MiB"  # of the tier: its segments are so small that new ones are needed soon
OLD, NEW = 8, 6  # prompts that fill the directory, and others
TEXT = "the ship went up the river past the market and the old bridge where a lamp was lit in the window " * 2
LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
static long told(const char *variable) {
  const char *path = getenv(variable);
  FILE *file = path ? fopen(path, "r") : NULL;
  long number = 0;
  if (file && fscanf(file, "%ld", &number) != 1) number = 0;
  if (file) fclose(file);
  return number;
}
static void rest(void) {
  for (long left = told("FAULT_MILLISECONDS"); left > 0; left -= 20) {
    usleep(20000);
    if (!told("FAULT_MILLISECONDS")) return;
  }
}
#define SLOW(result, name, parameters, arguments)                     \
  result name parameters {                                            \
    static result(*real) parameters;                                  \
    if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name);  \
    rest();                                                           \
    return real arguments;                                            \
  }
SLOW(ssize_t, preadv2, (int f, const struct iovec *v, int n, off_t o, int k), (f, v, n, o, k))
SLOW(ssize_t, preadv64v2, (int f, const struct iovec *v, int n, off64_t o, int k), (f, v, n, o, k))
SLOW(ssize_t, pwritev2, (int f, const struct iovec *v, int n, off_t o, int k), (f, v, n, o, k))
SLOW(ssize_t, pwritev64v2, (int f, const struct iovec *v, int n, off64_t o, int k), (f, v, n, o, k))
SLOW(int, fdatasync, (int f), (f))
SLOW(int, fsync, (int f), (f))
int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += told("FAULT_CLOCK");
  return result;
}
"""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass
class Place:
    """Where a server keeps its rows. root: of everything. environment: of the server, for the library."""

    root: Path
    disk: Path
    environment: dict[str, str]

    @property
    def kept(self) -> Path:
        return self.disk / "kv"

    def tell(self, variable: str, number: int) -> None:
        """What the library reads."""
        file = self.root / f"{variable}.new"
        file.write_text(str(number))
        file.rename(self.environment[variable])


@contextlib.contextmanager
def plain(disk: Path) -> Iterator[None]:
    yield


@contextlib.contextmanager
def small_tmpfs(disk: Path) -> Iterator[None]:
    run("mount", "-t", "tmpfs", "-o", f"size=20m,uid={NOBODY},mode=755", "tmpfs", str(disk))
    try:
        yield
    finally:
        run("umount", "-l", str(disk))


@contextlib.contextmanager
def ext4(disk: Path) -> Iterator[None]:
    """A file as a disk."""
    image = disk.with_name("image")
    with image.open("wb") as file:
        file.truncate(128 << 20)
    run("mkfs.ext4", "-q", str(image))
    run("mount", "-o", "loop,errors=remount-ro", str(image), str(disk))
    os.chown(disk, NOBODY, NOBODY)
    try:
        yield
    finally:
        run("umount", "-l", str(disk))


def make_place(root: Path) -> Place:
    """With the library; the disk is still to be put under `disk`."""
    root.chmod(0o755)
    (root / "fault.c").write_text(LIBRARY)
    run("cc", "-shared", "-fPIC", "-O1", "-o", str(root / "fault.so"), str(root / "fault.c"), "-ldl")
    names = ("FAULT_MILLISECONDS", "FAULT_CLOCK")
    told = {name: str(root / name) for name in names}
    place = Place(root, root / "disk", {"LD_PRELOAD": str(root / "fault.so"), "HOME": str(root), **told})
    for name in names:
        place.tell(name, 0)
    place.disk.mkdir()
    os.chown(place.disk, NOBODY, NOBODY)
    return place


@contextlib.contextmanager
def full(place: Place) -> Iterator[None]:
    ballast = place.disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    yield
    ballast.unlink()


@contextlib.contextmanager
def read_only(place: Place) -> Iterator[None]:
    device = Path(run("findmnt", "-n", "-o", "SOURCE", str(place.disk)))
    Path(f"/sys/fs/ext4/{device.name}/trigger_fs_error").write_text("an error that a test wants")
    yield


@contextlib.contextmanager
def permission(place: Place) -> Iterator[None]:
    os.chown(place.kept, 0, 0)
    place.kept.chmod(0o500)
    for file in place.kept.iterdir():
        file.chmod(0)
        os.chown(file, 0, 0)
    yield
    for file in (place.kept, *place.kept.iterdir()):
        os.chown(file, NOBODY, NOBODY)
        file.chmod(0o700)


@contextlib.contextmanager
def frozen(place: Place) -> Iterator[None]:
    run("fsfreeze", "-f", str(place.disk))
    try:
        yield
    finally:
        run("fsfreeze", "-u", str(place.disk))


@contextlib.contextmanager
def hang(place: Place) -> Iterator[None]:
    place.tell("FAULT_MILLISECONDS", 60_000)
    yield
    place.tell("FAULT_MILLISECONDS", 0)


@contextlib.contextmanager
def clock(place: Place) -> Iterator[None]:
    place.tell("FAULT_CLOCK", 365 * 86_400)
    yield
    place.tell("FAULT_CLOCK", -365 * 86_400)


@contextlib.contextmanager
def hang_up(place: Place) -> Iterator[None]:
    with full(place):
        place.tell("FAULT_MILLISECONDS", 200)
        yield
        place.tell("FAULT_MILLISECONDS", 0)


@dataclass(frozen=True)
class Fault:
    """reason: what is counted of it, at least. leaving: clients that hang up while it lasts."""

    medium: Callable[[Path], contextlib.AbstractContextManager[None]]
    begin: Callable[[Place], contextlib.AbstractContextManager[None]]
    reason: str = ""
    leaving: int = 0


FAULTS = {
    "full": Fault(small_tmpfs, full, "disk full"),
    "read-only": Fault(ext4, read_only, "read-only"),
    "permission": Fault(plain, permission, "permission"),
    "frozen": Fault(ext4, frozen, "timeout"),
    "hang": Fault(plain, hang, "timeout"),
    "clock": Fault(plain, clock),
    "hang-up": Fault(small_tmpfs, hang_up, leaving=100),
}


@dataclass
class Client:
    """Asks for greedy answers and compares them with those that it had before.

    reasons: why a tier brought no more, in the server's words. years: of its clock. slowest: seconds.
    """

    http: httpx.Client
    patience: float
    answers: dict[int, str] = field(default_factory=dict)
    different: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    years: set[int] = field(default_factory=set)
    slowest: float = 0.0

    def body(self, number: int) -> dict[str, Any]:
        text = f"Story {number}: " + " ".join(f"{word} {number}" for word in TEXT.split()) + " And then?"
        return {"prompt": text, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "cache_report": True}

    def ask(self, numbers: range) -> dict[str, int]:
        """Prompt tokens by where they came from."""
        places: dict[str, int] = {}
        for number in numbers:
            began = time.monotonic()
            answer = self.http.post("/v1/completions", json=self.body(number), timeout=300).raise_for_status().json()
            self.slowest = max(self.slowest, time.monotonic() - began)
            text, report = answer["choices"][0]["text"], answer["kvtrove"]["cache_report"]
            self.years.add(time.gmtime(answer["created"]).tm_year)
            if (reason := report.get("tier_reason")) is not None:
                self.reasons[re.sub(r"\d+", "N", reason)] += 1
            if self.answers.setdefault(number, text) != text:
                self.different.append(number)
            for place, tokens in {**report["reused_from"], "computed": report["computed_tokens"]}.items():
                places[place] = places.get(place, 0) + tokens
        return places

    def leave(self, number: int) -> None:
        """Ask, and hang up while the prefix is on its way."""
        with contextlib.suppress(httpx.TransportError):
            self.http.post("/v1/completions", json=self.body(number), timeout=0.1 + number % 7 / 10)

    def told(self, reason: str = "", seconds: float = 5.0) -> dict[str, Any]:
        """What the server says of its disk, once it counts the reason or so many seconds have passed."""
        until = time.monotonic() + seconds
        while True:
            [tier] = self.http.get("/v1/cache/memory", timeout=30).json()["tiers"]
            if not reason or tier["errors"].get(reason) or time.monotonic() > until:
                return {"errors": tier["errors"], "notices": tier["notices"]}
            time.sleep(0.1)

    def blocks(self) -> dict[str, int]:
        """Once none is used, or those after ten seconds."""
        for _ in range(100):
            [device] = self.http.get("/v1/cache/memory", timeout=30).json()["devices"]
            found = {name: device["kv_cache"][f"{name}_blocks"] for name in ("used", "cached", "free", "num")}
            if not found["used"]:
                break
            time.sleep(0.1)
        return found


def try_fault(fault: Fault, model: str, patience: float) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        place = make_place(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvtrove-fault-"))))
        stack.enter_context(fault.medium(place.disk))
        server, url, log = start(place, model)
        stack.callback(server.wait)
        stack.callback(server.kill)
        client = Client(stack.enter_context(httpx.Client(base_url=url, trust_env=False)), patience)
        old, new = range(OLD), range(OLD, OLD + NEW)
        client.ask(old)
        time.sleep(1.5)  # what is idle saves
        found: dict[str, Any] = {"before": client.ask(old)}
        client.slowest = 0.0
        with fault.begin(place):
            leaving = [threading.Thread(target=client.leave, args=(i % OLD,)) for i in range(fault.leaving)]
            for thread in leaving:
                thread.start()
            found["during"] = client.ask(new) | {"old": client.ask(old)}
            for thread in leaving:
                thread.join()
            found |= client.told(fault.reason)
        found["slowest_seconds"] = round(client.slowest, 2)
        time.sleep(3.5)  # a tier rests after faults
        found["after"] = client.ask(range(OLD + NEW))
        time.sleep(1)
        found |= {"notices_after": client.told()["notices"], "different": client.different, "blocks": client.blocks()}
        found |= {"reasons": client.reasons, "years": sorted(client.years)}
        server.terminate()
        began = time.monotonic()
        found["exit"] = server.wait(60)
        found["exit_seconds"] = round(time.monotonic() - began, 1)
        blocks, found["log"] = found["blocks"], log.read_text()
        found["ok"] = (
            not client.different
            and found["slowest_seconds"] < patience
            and (not fault.reason or (found["errors"].get(fault.reason, 0) > 0 and bool(found["notices"])))
            and blocks["used"] == 0
            and blocks["free"] + blocks["cached"] == blocks["num"]
            and "Traceback" not in found["log"]
        )
        return found


def start(place: Place, model: str) -> tuple[subprocess.Popen[str], str, Path]:
    """A server as an ordinary user: (process, address, its messages)."""
    log = place.root / "log"
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    command += [sys.executable, "-m", "kvtrove", "serve", model, "--port", "0", *FLAGS]
    command += ["--tier", f"disk:{place.kept},{SIZE}"]
    command += ["--backup-interval", "4", "--checkpoint-dir", str(place.disk / "checkpoints")]
    with log.open("w") as messages:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=messages, text=True, env={**os.environ, **place.environment}
        )
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.match(r"(http://\S+)/v1 serves", line)
    if found is None:
        raise SystemExit(f"the server did not start: {line!r}\n{log.read_text()[-2000:]}")
    for _ in range(300):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{found[1]}/health", trust_env=False).status_code == 200:
                break
        time.sleep(0.1)
    return server, found[1], log


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", nargs="*", choices=[[], *FAULTS], help="all of them when left out")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds that an answer may take")
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    found = {}
    for name in args.fault or FAULTS:
        found[name] = try_fault(FAULTS[name], args.model, args.patience)
        print(f"{name}: {'ok' if found[name]['ok'] else 'NOT ok'}", file=sys.stderr)
    write_json({"benchmark": "disk_faults", "model": args.model, "faults": found}, args.json, indent=1)
    return 0 if all(one["ok"] for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
