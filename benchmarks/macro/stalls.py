"""How long does a plain stream wait while a body of any kind is handled? The longest gap between two of its events.

    python benchmarks/macro/stalls.py [--model demo] [--size 4000000] [--only WORD] [--repeats 3] [--json FILE]

Starts `kvtrove serve`. A raw socket reads one stream on a thread of its own; each body is sent beside it, and only what
came between its first byte and the end of its answer counts. Of the repeats the smallest is kept: on a machine that
does other work too, the others say more about that work.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from kvtrove.cli.output import write_json

TOKENS = 4000  # of the stream; a new one begins when it ends
MANY = 19_000  # objects and lists: a little less than a body may hold
Case = tuple[str, dict[str, Any]]


def hi(text: str = "hi", role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def fill(make: Callable[[int], Any], size: int, most: int = 10**9) -> list[Any]:
    """As many items as make a JSON text of `size` bytes, at most `most`."""
    return [make(i) for i in range(min(most, size // (len(json.dumps(make(12345), separators=(",", ":"))) + 1)))]


def tool(padding: int, i: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"tool_{i}", "description": "d" * padding}}


def called(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "c00000000", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [hi(), {"role": "assistant", "content": None, "tool_calls": [call]}, hi(role="tool")]


def cases(size: int) -> dict[str, Case]:
    """Name -> (route, body)."""
    rng = random.Random(0)
    text = "word " * (size // 5)
    dialogue = [hi("w " * (size // MANY // 2 - 18), ("user", "assistant")[i % 2]) for i in range(MANY)]
    parts = [{"type": "text", "text": "p" * (size // MANY - 28)}] * MANY
    ids = [rng.randrange(8192) for _ in range(size * 10 // 49)]
    numbers = "1," * (size // 2 - 200) + "1"
    small, large = (fill(partial(tool, padding), size, 9000) for padding in (10, size // 9000 - 75))
    documents = fill(lambda i: {"title": "t", "text": "x" * 150}, size)
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}
    chats: dict[str, dict[str, Any]] = {
        "100,000 messages": {"messages": [hi()] * 100_000},
        "19,000 messages": {"messages": dialogue},
        "19,000 messages, truncation": {"messages": dialogue, "truncation": "auto", "max_tokens": 1},
        "9,001 messages, truncation": {"messages": dialogue[:9001], "truncation": "auto", "max_tokens": 1},
        "19,000 parts": {"messages": [hi(), {"role": "user", "content": parts}]},
        "9,000 tools": {"messages": [hi()], "tools": large},
        "9,000 tools, forced": {"messages": [hi()], "tools": small, "tool_choice": "required"},
        "arguments: numbers": {"messages": called(f'{{"x":[{numbers}]}}')},
        "arguments: text": {"messages": called(json.dumps({"x": text[:-100]}))},
        "template kwargs": {"messages": [hi()], "chat_template_kwargs": {"x": ["x" * 100] * (size // 104)}},
        "documents": {"messages": [hi()], "documents": documents},
    }
    completions: dict[str, dict[str, Any]] = {
        "floats where ids belong": {"prompt": [0.5] * (size // 4)},
        "ids": {"prompt": ids},
        "text": {"prompt": text},
        "allowed ids": {"prompt": "x", "max_tokens": 8, "n": 8, "allowed_token_ids": ids},
        "echo, 20 logprobs": {"prompt": ids[:4000], "max_tokens": 1, "echo": True, "logprobs": 20},
        "256 prompts, 20 logprobs": {"prompt": [[i] for i in ids[:256]], "logprobs": 20},
        "grammar": {"prompt": "x", "max_tokens": 4, "guided_regex": "(a|b){1,2000}"},
        "schema": {"prompt": "x", "max_tokens": 4, "guided_json": schema},
    }
    others: dict[str, Case] = {
        "tokenize, text": ("/tokenize", {"prompt": text}),
        "tokenize, text with strings": ("/tokenize", {"prompt": text, "return_token_strs": True}),
        "tokenize, messages": ("/tokenize", {"messages": dialogue}),
        "detokenize": ("/detokenize", {"tokens": ids}),
        "count_tokens": ("/v1/messages/count_tokens", {"messages": dialogue}),
        "explain, messages": ("/v1/cache/explain", {"messages": dialogue}),
        "explain, text": ("/v1/cache/explain", {"prompt": text}),
        "responses, 19,000 items": ("/v1/responses", {"input": dialogue}),
        "messages, 19,000": ("/v1/messages", {"max_tokens": 1, "messages": dialogue}),
    }
    routed = {name: ("/v1/chat/completions", body) for name, body in chats.items()}
    return routed | {name: ("/v1/completions", body) for name, body in completions.items()} | others


class Server:
    """`kvtrove serve` on a port of its own."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "kvtrove", "serve", "--port", "0", "--kv", "128MiB", model]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        address = re.match(r"http://([\d.]+):(\d+)/v1 serves", self.process.stdout.readline())
        if address is None:
            sys.exit("the server did not start")
        self.address = address[1], int(address[2])
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def wait(self) -> None:
        """Until the model is loaded and the port is open."""
        while True:
            try:
                return socket.create_connection(self.address, timeout=120).close()
            except ConnectionRefusedError:
                time.sleep(0.1)

    def post(self, route: str, body: bytes) -> socket.socket:
        """A connection on which the request has been sent."""
        connection = socket.create_connection(self.address, timeout=120)
        head = f"POST {route} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        return connection

    def exchange(self, route: str, body: bytes) -> int:
        """The status of the answer, which is read to its end."""
        with self.post(route, body) as connection:
            answer = connection.recv(2**16)
            while connection.recv(2**20):
                pass
        return int(answer.split(b" ", 2)[1])


class Stream(threading.Thread):
    """Reads one stream after the other, and when their events came. gaps: (end, length) in seconds."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server, self.gaps, self.running = server, [(time.monotonic(), 0.0)], True

    def run(self) -> None:
        body = json.dumps({"prompt": "Once", "max_tokens": TOKENS, "stream": True, "ignore_eos": True}).encode()
        while self.running:
            with self.server.post("/v1/completions", body) as connection:
                before = None
                while self.running and connection.recv(2**16):
                    now = time.monotonic()
                    if before is not None:
                        self.gaps.append((now, now - before))
                    before = now

    def longest(self, start: float, end: float) -> float:
        """The longest gap that touches this time."""
        return max((gap for at, gap in self.gaps if at >= start and at - gap <= end), default=0.0)


def measured(server: Server, stream: Stream, case: Case, repeats: int) -> dict[str, Any]:
    route, content = case
    body = json.dumps(content, separators=(",", ":")).encode()
    gaps, seconds = [], []
    for _ in range(repeats):
        start = time.monotonic()
        status = server.exchange(route, body)
        end = time.monotonic()
        time.sleep(0.3)
        gaps.append(stream.longest(start, end))
        seconds.append(end - start)
    row = {"mib": round(len(body) / 2**20, 2), "status": status, "seconds": round(min(seconds), 2)}
    return row | {"gap_ms": round(1000 * min(gaps)), "gaps_ms": [round(1000 * gap) for gap in gaps]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--size", type=int, default=4_000_000, help="bytes of a body")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    server = Server(args.model)
    found: dict[str, Any] = {}
    try:
        server.wait()
        stream = Stream(server)
        stream.start()
        time.sleep(3)
        found["nothing"] = {"gap_ms": round(1000 * stream.longest(time.monotonic() - 2, time.monotonic()))}
        for name, case in cases(args.size).items():
            if args.only in name:
                found[name] = measured(server, stream, case, args.repeats)
                print(f"{name:32} {found[name]}", file=sys.stderr, flush=True)
        stream.running = False
    finally:
        server.process.terminate()
        server.process.wait(60)
    write_json({"benchmark": "stalls", "model": args.model, "cases": found}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
