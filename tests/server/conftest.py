"""One real server per session, with three kinds of tenants and an administrator."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.live import LiveServer, running_server

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"
SHARED = ("shared-key-one-0123456789", "shared-key-two-0123456789")
ADMIN = "admin-key-0123456789"
NUM_BLOCKS = 384
MAX_BODY = 256 * 1024

_KEYS = f"""
[alice]
key = "{ALICE}"

[bob]
key = "{BOB}"

[one]
key = "{SHARED[0]}"
shared = true

[two]
key = "{SHARED[1]}"
shared = true

[root]
key = "{ADMIN}"
admin = true
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys.toml").write_text(_KEYS)
    flags = ["--api-keys", str(folder / "keys.toml"), "--num-blocks", str(NUM_BLOCKS), "--max-body-size", str(MAX_BODY)]
    flags += ["--served-model-name", "demo", "--served-model-name", "also/demo", "--log-level", "debug"]
    with running_server(folder, *flags) as live:
        yield live


@pytest.fixture
def alice(server: LiveServer) -> Iterator[httpx.Client]:
    """A plain HTTP client with an ordinary key. The server holds no blocks when the test is over."""
    with server.client(ALICE) as client:
        yield client
    server.wait_idle(ALICE)
