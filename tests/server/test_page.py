"""The page at `/`, what it draws from, and `kvtrove top`: on a real server, and in a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvtrove.cli.main import app
from kvtrove.kv.reasons import Reason
from kvtrove.server.page.router import FOLDER
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


def test_every_reason_has_words() -> None:
    script = (FOLDER / "app.js").read_text(encoding="utf-8")
    assert all(f"  {reason}: " in script for reason in Reason)


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
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_browser_draws_it_and_the_keyboard_works_it(server: LiveServer, scheme: str, width: int) -> None:
    from playwright.sync_api import expect, sync_playwright

    with server.client() as client:
        until(lambda: any(sample["ttft"] for sample in client.get("/v1/status").json()["history"]))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(f"{server.url}/")
        expect(page.locator("#headline")).to_contain_text("demo · ready · context")
        expect(page.locator("#chart-ttft :is(polyline, circle)").first).to_be_attached()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")

        row = page.locator("details", has_text="It goes on differently").first
        row.locator("summary").focus()
        page.keyboard.press("Enter")
        expect(row).to_contain_text("First difference at token")
        expect(row.locator(".tokens .t-parted").first).to_be_visible()
        text = "".join(row.locator(".tokens span").all_inner_texts())
        assert "Remember what is said, today is 2026-11-02." in text
        assert "2" in row.locator(".tokens .t-parted").first.inner_text(), "the day is what differs"

        page.locator("#message").fill("My name is Clara.")
        page.keyboard.press("Enter")
        expect(page.locator("#talk .note")).to_contain_text("reused")
        page.locator("#message").fill("Do you know my name?")
        page.keyboard.press("Enter")
        expect(page.locator("#talk .bar")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing is wider than the screen"
        browser.close()
    assert not problems, "an error of the script, or something that the security policy stops"


def test_a_prompt_is_shown_token_by_token_to_its_own_tenant(server: LiveServer) -> None:
    with server.client() as client:
        body = {"model": "demo", "prompt": "caf\u00e9 \u65e5\u672c", "max_tokens": 1}
        headers = {"x-request-id": "by-token"}
        usage = client.post("/v1/completions", json=body, headers=headers).raise_for_status().json()["usage"]
        [one] = client.get("/v1/cache/reports/by-token").raise_for_status().json()["data"]
        assert "".join(one["tokens"]).endswith("caf\u00e9 \u65e5\u672c")
        assert len(one["tokens"]) == one["prompt_tokens"] == usage["prompt_tokens"]
        assert 0 <= one["reused_tokens"] <= one["same_tokens"] <= one["prompt_tokens"]
        assert client.get("/v1/cache/reports/nobodys").status_code == 404


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
