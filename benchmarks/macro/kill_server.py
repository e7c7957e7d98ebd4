"""Kill -9 a server under load, again and again: chats go on where they stood, on what the disk has of them.

    python benchmarks/macro/kill_server.py MODEL [--clients 8] [--kills 6] [--json FILE] [-- --dtype float32 ...]

Every client holds a chat of its own and sends the next turn as soon as it has an answer. Once all have one, at a random
moment, the server is killed and started again on the same `--kv-dir`; what was not answered is sent again. What the
first turn of a chat after a kill reused is compared with the tokens that the chat had before it. Then the same chats
are held with a server that nobody kills: greedy answers must be the same, letter for letter. What follows `--` goes to
`kvtrove serve`. Exit code 1 when an answer is missing, differs, or less than --least of the tokens of earlier turns
came back.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from kvtrove.cli.output import write_json

WORDS = "river stone lamp winter garden letter ship market bridge copper forest window harbour music salt"
START_SECONDS = 120.0


class Victim:
    """`kvtrove serve` on a directory. up: set while it answers; url: where, then. ready_seconds: of every start."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log
        self._process: subprocess.Popen[str] | None = None
        self.up = asyncio.Event()
        self.url = ""
        self.ready_seconds: list[float] = []

    async def start(self) -> None:
        began = time.monotonic()
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        found = re.match(r"(http://\S+)/v1 serves", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line!r}\n{self._log.read_text()[-2000:]}")
        async with httpx.AsyncClient(base_url=found[1], trust_env=False) as http:
            while time.monotonic() < began + START_SECONDS:
                try:
                    if (await http.get("/health")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)
        self.ready_seconds.append(time.monotonic() - began)
        self.url = found[1]
        self.up.set()

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Nothing happens to one that has ended."""
        self.up.clear()
        if self._process is not None:
            self._process.send_signal(number)
            await asyncio.to_thread(self._process.wait)


@dataclass
class Turn:
    """answer: of the model. known: tokens of the chat before it. reused: of them, from what place."""

    answer: str
    tokens: int
    known: int
    reused: dict[str, int]
    after_kill: bool
    retries: int


@dataclass
class Chat:
    """One client. life: of the server that gave the last answer, by number."""

    number: int
    answer_tokens: int
    turns: list[Turn] = field(default_factory=list)
    life: int = 1

    def question(self, turn: int) -> str:
        rng, words = random.Random(f"{self.number}.{turn}"), WORDS.split()
        return f"Part {turn + 1}. Write about these: " + " ".join(rng.choice(words) for _ in range(rng.randint(20, 90)))

    async def hold(self, victim: Victim, stop: asyncio.Event, turns: int | None) -> None:
        """Turn after turn, so many of them, or until `stop` is set."""
        system = f"You are guide number {self.number}. " + "Answer in plain words, and remember what was said. " * 12
        messages = [{"role": "system", "content": system}]
        known = 0
        while len(self.turns) != turns and not (turns is None and stop.is_set()):
            messages.append({"role": "user", "content": self.question(len(self.turns))})
            reply, life, retries = await self._ask(victim, messages)
            killed, self.life = life > self.life, life
            [choice], usage, report = reply["choices"], reply["usage"], reply["kvtrove"]["cache_report"]
            messages.append(choice["message"])
            answered = usage["completion_tokens"]
            self.turns.append(
                Turn(choice["message"]["content"], answered, known, report["reused_from"], killed, retries)
            )
            known = usage["prompt_tokens"] + answered

    async def _ask(self, victim: Victim, messages: list[dict[str, str]]) -> tuple[dict[str, Any], int, int]:
        """The answer, which of the servers gave it, how often it was asked for in vain."""
        body = {
            "messages": messages,
            "max_tokens": self.answer_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_report": True,
        }
        retries = 0
        while True:
            await victim.up.wait()
            life = len(victim.ready_seconds)
            try:
                async with httpx.AsyncClient(base_url=victim.url, timeout=600, trust_env=False) as http:
                    answer = await http.post("/v1/chat/completions", json=body)
                return answer.raise_for_status().json(), life, retries
            except httpx.TransportError:
                retries += 1
                await asyncio.sleep(0.05)


async def talk(victim: Victim, chats: list[Chat], kills: int, seconds: float, turns: list[int]) -> None:
    """Hold all chats; kill the server so often, up to so many seconds after it has answered every client.

    turns: of each chat, where it is to end by itself.
    """

    async def all_answered() -> None:
        before = [len(chat.turns) for chat in chats]
        while any(len(chat.turns) <= n for chat, n in zip(chats, before, strict=True)):
            await asyncio.sleep(0.05)

    stop, draw = asyncio.Event(), random.Random(kills)
    await victim.start()
    async with asyncio.TaskGroup() as group:
        for i, chat in enumerate(chats):
            group.create_task(chat.hold(victim, stop, turns[i] if turns else None))
        for _ in range(kills):
            await all_answered()
            await asyncio.sleep(draw.uniform(0, seconds))
            await victim.kill()
            await victim.start()
        if kills:
            await all_answered()
        stop.set()
    await victim.kill(signal.SIGTERM)


def report(chats: list[Chat], again: list[Chat], victim: Victim, kills: int) -> dict[str, Any]:
    turns = [turn for chat in chats for turn in chat.turns]
    after = [turn for turn in turns if turn.after_kill and turn.known]
    known = sum(turn.known for turn in after)
    loaded = sum(min(turn.known, sum(turn.reused.values())) for turn in after)
    pairs = [pair for a, b in zip(chats, again, strict=False) for pair in zip(a.turns, b.turns, strict=True)]
    places = sorted({place for turn in after for place in turn.reused})
    return {
        "benchmark": "kill_server",
        "kills": kills,
        "clients": len(chats),
        "answers": len(turns),
        "answers_cut_short": sum(not turn.answer or turn.tokens != chats[0].answer_tokens for turn in turns),
        "sent_again": sum(turn.retries for turn in turns),
        "turns_after_a_kill": len(after),
        "earlier_tokens": known,
        "loaded_tokens": loaded,
        "loaded_share": round(loaded / known, 4) if known else None,
        "least_share": round(min(min(t.known, sum(t.reused.values())) / t.known for t in after), 4) if after else None,
        "reused_from": {place: sum(turn.reused.get(place, 0) for turn in after) for place in places},
        "compared_answers": len(pairs),
        "different_answers": sum(one.answer != other.answer for one, other in pairs),
        "ready_seconds": round(median(victim.ready_seconds), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--seconds", type=float, default=8.0, help="most between an answer to each client and a kill")
    parser.add_argument("--least", type=float, default=0.95, help="share of earlier tokens that must come back")
    parser.add_argument("--no-comparison", action="store_true", help="do not hold the chats a second time")
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    args, flags = parser.parse_args(words[:own]), words[own + 1 :]
    with tempfile.TemporaryDirectory(prefix="kvtrove-kill-") as folder:

        async def run(name: str, kills: int, turns: list[int]) -> tuple[list[Chat], Victim]:
            command = [sys.executable, "-m", "kvtrove", "serve", args.model, "--port", "0", "--log-level", "warning"]
            victim = Victim([*command, "--kv-dir", f"{folder}/{name}", *flags], Path(folder) / f"{name}.log")
            chats = [Chat(number, args.answer) for number in range(args.clients)]
            try:
                await talk(victim, chats, kills, args.seconds, turns)
            finally:
                await victim.kill()
            return chats, victim

        chats, victim = asyncio.run(run("killed", args.kills, []))
        again: list[Chat] = []
        if not args.no_comparison:
            again, _ = asyncio.run(run("not-killed", 0, [len(chat.turns) for chat in chats]))
    found = report(chats, again, victim, args.kills)
    found["ok"] = not (found["answers_cut_short"] or found["different_answers"]) and (
        (found["loaded_share"] or 0) >= args.least
    )
    write_json(found | {"model": args.model, "flags": flags}, args.json)
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
