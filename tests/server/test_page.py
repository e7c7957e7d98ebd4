"""The page at `/`, what it draws from, and `kvtrove top`: on a real server, and in a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvtrove.cli.main import app
from tests.server.live import LiveServer, running_server
from tests.tiers.rows import until

KEY = "a-key-of-the-test-server"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    flags = ("demo", "--kv", "16MiB", "--no-warm-up", "--root-path", "/llm")
    with running_server(tmp_path_factory.mktemp("page"), *flags) as found:
        with found.client() as client:
            for number in (1, 2):
                messages = [
                    {"role": "system", "content": f"Remember what is said, today is 2026-11-0{number}. " * 9},
                    {"role": "user", "content": "My name is Clara."},
                ]
                body = {"model": "demo", "messages": messages, "max_tokens": 4}
                client.post("/v1/chat/completions", json=body).raise_for_status()
        yield found


def test_the_page_runs_nothing_that_is_not_its_own(server: LiveServer) -> None:
    with server.client() as client:
        answer = client.get("/")
        names = re.findall(r'(?:src|href)="(page/[^"]+)"', answer.text)
        assert set(names) == {"page/app.js", "page/style.css", "page/icon.svg"}
        assert "http" not in answer.text.replace("http-equiv", "")
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert not re.search(r"<script>|<style|\son\w+=|style=", answer.text), "the policy forbids what stands inline"
        for name in names:
            assert client.get(f"/{name}").status_code == 200
            assert client.get(f"/llm/{name}").status_code == 200, "behind a proxy that leaves the prefix"


def test_the_status_adds_up(server: LiveServer) -> None:
    with server.client() as client:
        status = client.get("/v1/status").json()
    blocks, memory = status["blocks"], status["memory"]
    assert blocks["used"] + blocks["cached"] + blocks["free"] == blocks["total"]
    assert sum(size for name, size in memory.items() if name != "total") == memory["total"]
    [tenant] = status["tenants"]
    assert (tenant["tenant"], tenant["requests"]) == ("local", 2)
    assert (status["state"], status["in_flight"]) == ("ready", [])


def test_the_access_line_says_what_the_cache_did(server: LiveServer) -> None:
    pattern = r"POST /v1/chat/completions 200 in [\d.]+ s: \d+ prompt tokens, \d+ reused, \d+ out, first after [\d.]+ s"
    assert len(re.findall(pattern, server.log.read_text())) == 2


def test_top_shows_it_once_in_a_pipe(server: LiveServer) -> None:
    result = CliRunner().invoke(app, ["top", server.url], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "demo  ready" in result.output
    assert "0 requests in flight" in result.output
    assert json.loads(CliRunner().invoke(app, ["top", server.url, "--json"]).output)["object"] == "status"


@pytest.mark.parametrize(
    ("url", "message"), [("localhost", "is no address"), ("http://127.0.0.1:9", "does not answer")]
)
def test_top_without_a_server_is_one_line(url: str, message: str) -> None:
    result = CliRunner().invoke(app, ["top", url])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert message in result.output


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")
def test_a_browser_draws_it(server: LiveServer, tmp_path: Path) -> None:
    """Headless, after six seconds of the page's own time, once the server has a sample for its curves."""
    with server.client() as client:
        until(lambda: any(sample["ttft"] for sample in client.get("/v1/status").json()["history"]))
    flags = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
    )
    command = [str(BROWSER), *flags, "--virtual-time-budget=6000", "--dump-dom", f"{server.url}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert "Uncaught" not in done.stderr, done.stderr
    assert "Refused to" not in done.stderr, "the content security policy stops a part of the page"
    page = done.stdout
    assert re.search(r'id="headline"[^>]*>demo · ready · context', page)
    assert page.count("<details") == 2, "a row for each prompt"
    assert "First difference at token" in page
    assert re.search(r"<polyline|<circle", page), "a curve"
    assert '<main id="main">' in page, "it is shown"


def test_with_keys_the_page_opens_and_its_figures_do_not(tmp_path: Path) -> None:
    with running_server(tmp_path, "demo", "--kv", "16MiB", "--no-warm-up", "--api-key", KEY) as server:
        with server.client() as client:
            assert client.get("/").status_code == 200
            assert client.get("/v1/status").status_code == 401
        with server.client(KEY) as client:
            assert client.get("/v1/status").status_code == 200
        assert (
            "give --api-key KEY" in CliRunner().invoke(app, ["top", server.url], env={"KVTROVE_API_KEY": None}).output
        )
        assert CliRunner().invoke(app, ["top", server.url], env={"KVTROVE_API_KEY": KEY}).exit_code == 0
