"""Keys, tenants, host names, origins: who may talk to the server at all."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest

from kvtrove.config import ConfigError, Environment
from kvtrove.server.auth import Keyring, Rates, Tenant, load_keyring, tenant_salt
from kvtrove.server.run import bind
from kvtrove.server.settings import Limits, ServerSettings, is_loopback
from tests.server.in_process import running_app

KEY = "a-key-of-some-length"


def read(tmp_path: Path, text: str) -> Keyring:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    return load_keyring(None, None, file)


def test_a_key_file_makes_tenants(tmp_path: Path) -> None:
    more = "shared = true\nadmin = true\nmax_concurrent = 3\nrequests_per_minute = 60\nburst_seconds = 5\n"
    ring = read(tmp_path, f'[a]\nkey = "{KEY}"\n[b]\nkey = "{KEY}-b"\n{more}')
    assert ring.tenant(KEY) == Tenant("a", tenant_salt("a"))
    assert ring.tenant(f"{KEY}-b") == Tenant("b", "", admin=True, max_concurrent=3, rates=Rates(60, None, 5))
    assert ring.tenant("no") is None
    assert ring.tenant(None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("key = ", "is not TOML"),
        ("a = 1", r"\[a\] must be a table"),
        ("[a]", "has no key"),
        ('[a]\nkey = "short"', "at least 16 ASCII characters"),
        (f'[a]\nkey = "{KEY} "', "without spaces"),
        (f'[a]\nkey = "{KEY}"\nshard = true', "unknown field 'shard' .did you mean 'shared'"),
        (f'[a]\nkey = "{KEY}"\nadmin = 1', "admin must be a bool"),
        (f'[a]\nkey = "{KEY}"\nmax_concurrent = 0', "must be at least 1"),
        (f'[a]\nkey = "{KEY}"\ntokens_per_minute = 0', "tokens_per_minute: 0 must be at least 1"),
        (f'[a]\nkey = "{KEY}"\n[b]\nkey = "{KEY}"', "two tenants have the same key"),
    ],
)
def test_a_wrong_key_file_says_what_is_wrong_but_never_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, text)
    assert KEY not in str(error.value)


def test_keys_from_the_environment() -> None:
    environment = Environment.read({"KVTROVE_API_KEY": KEY, "KVTROVE_ADMIN_KEY": f"{KEY}-admin"})
    assert KEY not in repr(environment)
    ring = load_keyring(environment.api_key, environment.admin_key, None)
    user, admin = ring.tenant(KEY), ring.tenant(f"{KEY}-admin")
    assert user is not None
    assert admin is not None
    assert (user.admin, admin.admin) == (False, True)
    with pytest.raises(ConfigError, match="no ordinary key"):
        load_keyring(None, KEY, None)


def test_salts_depend_on_the_name_alone_and_differ() -> None:
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in (b"tenant", b"a"))
    assert tenant_salt("a") == hashlib.sha256(framed).hexdigest()
    own = (Tenant("a", tenant_salt("a")).cache_salt("b"), Tenant("x").cache_salt("b"))
    assert len({tenant_salt("a"), tenant_salt("b"), *own}) == 4


def test_without_keys_the_server_stays_on_loopback() -> None:
    with pytest.raises(ConfigError, match="KVTROVE_API_KEY"):
        bind(ServerSettings(host="0.0.0.0", port=0), Keyring())
    bind(ServerSettings(host="127.0.0.1", port=0), Keyring()).close()
    bind(ServerSettings(host="0.0.0.0", port=0), Keyring([(KEY, Tenant("a"))])).close()


def test_connections_send_at_once() -> None:
    """Small pieces of a stream do not wait for acknowledgements of those before (TCP_NODELAY)."""

    async def scenario() -> int:
        connected: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = bind(ServerSettings(port=0), Keyring())
        async with await asyncio.start_server(accept, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            found = await connected
            writer.close()
        return found

    assert asyncio.run(scenario())


def test_a_taken_port_is_named() -> None:
    with bind(ServerSettings(port=0), Keyring()) as taken:
        taken.listen()
        with pytest.raises(ConfigError, match="--port 0"):
            bind(ServerSettings(port=taken.getsockname()[1]), Keyring())


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) == local


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example", 403), ("evil.example:8000", 403)],
)
def test_a_rebound_name_is_refused_without_keys(host: str, status: int) -> None:
    async def scenario() -> None:
        async with running_app() as app:
            answer = await app.client.get("/v1/models", headers={"host": host})
            assert answer.status_code == status

    asyncio.run(scenario())


def test_admin_routes_are_closed_without_an_admin_key() -> None:
    async def scenario() -> None:
        async with running_app() as app:
            answer = await app.client.post("/v1/cache/clear")
            assert answer.status_code == 403
            assert "KVTROVE_ADMIN_KEY" in answer.json()["error"]["message"]

    asyncio.run(scenario())


def test_other_origins_are_let_in_only_when_asked_for() -> None:
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}

    async def headers(origins: tuple[str, ...]) -> Any:
        keys = Keyring([(KEY, Tenant("a"))])
        async with running_app(cors_origins=origins, keyring=keys) as app:
            before = await app.client.options("/v1/chat/completions", headers=preflight)
            after = await app.client.get("/health", headers={"origin": "https://page.example"})
            return before.status_code, after.headers.get("access-control-allow-origin")

    assert asyncio.run(headers(())) == (401, None)
    assert asyncio.run(headers(("https://page.example",))) == (200, "https://page.example")
    assert asyncio.run(headers(("https://other.example",))) == (400, None)


@pytest.mark.parametrize("name", ["max_queue", "request_timeout", "max_body_bytes"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: 0})


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"drain_timeout": -1}, {"tool_format": "xml"}, {"served_model_names": ()}]
)
def test_settings_name_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServerSettings(**wrong)
