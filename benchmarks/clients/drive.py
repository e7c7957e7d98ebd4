"""Drives real client packages against a server, and writes which of their features work: docs/clients.md.

    python benchmarks/clients/drive.py                          starts `kvtrove serve` on the embedded model
    python benchmarks/clients/drive.py --url http://host:8000   against a server that runs; needs no kvtrove here

Clients that are not installed are left out of the run; their rows in the page stay as they were. `features.py` lists
the clients; a feature is a function that raises unless what the client gives back is right.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from features import CLIENTS

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
START, END = "<!-- table: written by benchmarks/clients/drive.py -->", "<!-- end of the table -->"
NODE = ("AI SDK, openai chat", "AI SDK, openai responses", "AI SDK, openai-compatible", "AI SDK, anthropic")
FEATURES = ("answer", "stream", "forced call", "tool result", "structured", "overflow", "usage")


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The URL of a server on the embedded model, for as long as it is wanted."""
    command = [sys.executable, "-m", "kvtrove", "serve", "--port", "0", "--no-warm-up", "--kv", "64MiB"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = re.match(r"(http://\S+)/v1 serves", process.stdout.readline())
        if found is None:
            raise SystemExit("kvtrove serve did not start")
        yield found[1]
    finally:
        process.terminate()
        process.wait()


def drive(url: str, only: str) -> dict[str, list[str]]:
    """Cells of the table by row: ok, FAILS, or a dash for what a client does not offer."""
    rows: dict[str, list[str]] = {}
    for (name, package), features in CLIENTS.items():
        if only not in name:
            continue
        try:
            label = f"{name} {version(package)}" if package else name
        except PackageNotFoundError:
            print(f"{name}: {package} is not installed")
            continue
        cells = []
        for feature in FEATURES:
            cell = "-"
            if feature in features:
                try:
                    features[feature](url)
                    cell = "ok"
                except Exception:
                    cell = "FAILS"
                    traceback.print_exc(limit=-2)
            print(f"{label}: {feature}: {cell}", flush=True)
            cells.append(cell)
        rows[label] = cells
    return rows


def drive_node(url: str, folder: Path) -> dict[str, list[str]]:
    """The rows of Vercel's AI SDK, which `folder` has in its node_modules."""
    command = ["node", str(Path(__file__).with_name("ai_sdk.mjs")), url, str(folder.resolve())]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    return {f"{one['name']} {one['version']}": [one["cells"].get(f, "-") for f in FEATURES] for one in found}


def table(rows: dict[str, list[str]]) -> str:
    lines = [f"| client | {' | '.join(FEATURES)} |", "|---" * (len(FEATURES) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def write(rows: dict[str, list[str]]) -> None:
    """Put the rows into the page. Those of clients that did not run stay."""
    text = PAGE.read_text()
    before, rest = text.split(START)
    old, after = rest.split(END)
    kept: dict[str, list[str]] = {}
    for line in old.strip().splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        kept[name] = cells
    names = [*(name for name, _ in CLIENTS), *NODE]
    new = {_client(name, names): (name, cells) for name, cells in [*kept.items(), *rows.items()]}
    ordered = {new[name][0]: new[name][1] for name in names if name in new}
    PAGE.write_text(f"{before}{START}\n{table(ordered)}\n{END}{after}")


def _client(label: str, names: list[str]) -> str:
    """The client of a row: its label without the version."""
    return max((name for name in names if label.startswith(name)), key=len)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a server that runs, without /v1")
    parser.add_argument("--only", default="", help="clients whose name contains this")
    parser.add_argument("--node", type=Path, help="folder with Vercel's AI SDK in its node_modules: see ai_sdk.mjs")
    parser.add_argument("--write", action="store_true", help="put the result into docs/clients.md")
    given = parser.parse_args()
    with contextlib.nullcontext(given.url) if given.url else served() as url:
        rows = drive(url, given.only)
        if given.node:
            rows |= drive_node(url, given.node)
    print(table(rows))
    if given.write:
        write(rows)
    return int(any("FAILS" in cells for cells in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
