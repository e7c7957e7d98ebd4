"""How long does a plain stream wait while a body of any kind is handled? The longest gap between two of its events.

    python benchmarks/macro/stalls.py [--model demo] [--size 4000000] [--only WORD] [--repeats 3] [--json FILE]

Starts `kvtrove serve`. A raw socket reads one stream on a thread of its own; each body is sent beside it, and only what
came between its first byte and the end of its answer counts. Of the repeats the smallest is kept: on a machine that does
other work too, the others say more about that work.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TOKENS = 4000  # of the stream; a new one begins when it ends
MANY = 19_000  # objects and lists: a little less than a body may hold
Case = tuple[str, dict[str, Any]]


def hi(text: str = "hi", role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def fill(make: Callable[[int], Any], size: int, most: int = 10**9) -> list[Any]:
    """As many items as make a JSON text of `size` bytes, at most `most`."""
    return [make(i) for i in range(min(most, size // (len(json.dumps(make(12345), separators=(",", ":"))) + 1)))]


def tool(i: int, padding: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"tool_{i}", "description": "d" * padding}}


def called(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "c00000000", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [hi(), {"role": "assistant", "content": None, "tool_calls": [call]}, hi(role="tool")]


def cases(size: int) -> Iterator[tuple[str, Case]]:
    """(name, (route, body))"""
    chat, rng = "/v1/chat/completions", random.Random(0)
    text = "word " * (size // 5)
    dialogue = [hi("w " * (size // MANY // 2 - 18), ("user", "assistant")[i % 2]) for i in range(MANY)]
    numbers = json.dumps([1] * (size // 2 - 200), separators=(",", ":"))
    ids = [rng.randrange(8192) for _ in range(size * 10 // 49)]
    yield "floats where ids belong", ("/v1/completions", {"prompt": [0.5] * (size // 4)})
    yield "ids", ("/v1/completions", {"prompt": ids})
    yield "100,000 messages", (chat, {"messages": [hi()] * 100_000})
    yield "19,000 messages", (chat, {"messages": dialogue})
    yield "19,000 messages, truncation", (chat, {"messages": dialogue, "truncation": "auto", "max_tokens": 1})
    yield "9,001 messages, truncation", (chat, {"messages": dialogue[:9001], "truncation": "auto", "max_tokens": 1})
    yield "19,000 parts", (chat, {"messages": [hi()] + [{"role": "user", "content": [part("p" * (size // MANY - 28))] * MANY}]})
    yield "9,000 tools", (chat, {"messages": [hi()], "tools": fill(lambda i: tool(i, size // 9000 - 75), size, 9000)})
    yield "9,000 tools, forced", (
        chat,
        {"messages": [hi()], "tools": fill(lambda i: tool(i, 10), size, 9000), "tool_choice": "required"},
    )
    yield "arguments: numbers", (chat, {"messages": called('{"x":' + numbers + "}")})
    yield "arguments: text", (chat, {"messages": called(json.dumps({"x": "word " * (size // 5 - 20)}))})
    yield "template kwargs", (chat, {"messages": [hi()], "chat_template_kwargs": {"x": ["x" * 100] * (size // 104)}})
    yield "documents", (chat, {"messages": [hi()], "documents": fill(lambda i: {"title": "t", "text": "x" * 150}, size)})
    yield "text, completions", ("/v1/completions", {"prompt": text})
    yield "text, /tokenize", ("/tokenize", {"prompt": text})
    yield "text, /tokenize with strings", ("/tokenize", {"prompt": text, "return_token_strs": True})
    yield "messages, /tokenize", ("/tokenize", {"messages": dialogue})
    yield "ids, /detokenize", ("/detokenize", {"tokens": ids})
    yield "count_tokens", ("/v1/messages/count_tokens", {"messages": dialogue})
    yield "explain", ("/v1/cache/explain", {"messages": dialogue})
    yield "explain, text", ("/v1/cache/explain", {"prompt": text})
    yield "19,000 items, /v1/responses", ("/v1/responses", {"input": dialogue})
    yield "19,000 messages, /v1/messages", ("/v1/messages", {"max_tokens": 1, "messages": dialogue})
    yield "allowed ids", ("/v1/completions", {"prompt": "x", "max_tokens": 8, "n": 8, "allowed_token_ids": ids})
    yield "echo, 20 logprobs", ("/v1/completions", {"prompt": ids[:4000], "max_tokens": 1, "echo": True, "logprobs": 20})
    yield "256 prompts, 20 logprobs", ("/v1/completions", {"prompt": [[i] for i in ids[:256]], "logprobs": 20})
    yield "grammar", ("/v1/completions", {"prompt": "x", "max_tokens": 4, "guided_regex": "(a|b){1,2000}"})
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}
    yield "schema", ("/v1/completions", {"prompt": "x", "max_tokens": 4, "guided_json": schema})


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


class Server:
    """`kvtrove serve` on a port of its own."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "kvtrove.cli", "serve", "--port", "0", "--kv", "128MiB", model]
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
        for name, case in cases(args.size):
            if args.only in name:
                found[name] = measured(server, stream, case, args.repeats)
                print(f"{name:32} {found[name]}", file=sys.stderr, flush=True)
        stream.running = False
    finally:
        server.process.terminate()
        server.process.wait(60)
    text = json.dumps({"benchmark": "stalls", "model": args.model, "cases": found}, indent=1) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    else:
        Path(args.json).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
