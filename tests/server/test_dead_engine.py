"""An engine that cannot go on ends the process, after everyone was told, so that a supervisor starts another one."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from kvtrove.config import ConfigError
from kvtrove.server.auth import Keyring, load_keyring
from kvtrove.server.run import ENGINE_DIED
from tests.server.fake_engine import ENDLESS, FATAL
from tests.server.live import running_server
from tests.server.test_shutdown import start_readers

FAKE = "tests.server.fake_engine"


@pytest.mark.parametrize("fatal", [FATAL, ENDLESS], ids=["fails", "hangs in native code"])
def test_a_dead_engine_tells_everyone_and_ends_the_process(tmp_path: Path, fatal: int) -> None:
    with running_server(tmp_path, "--step-timeout", "0.5", module=FAKE) as server:
        [reader] = start_readers(server, 1, max_tokens=4000)
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": fatal}, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_error")
        assert server.process.wait(20) == ENGINE_DIED
        reader.join(5)
        assert reader.lines[-1] == "data: [DONE]"
        assert json.loads(reader.lines[-2][6:])["error"]["code"] == "engine_error"
        assert "the process ends because its engine has" in server.log.read_text()


def test_keys_are_read_again_and_wrong_ones_change_nothing(tmp_path: Path) -> None:
    old, new, file = "a" * 16, "b" * 16, tmp_path / "keys.toml"
    file.write_text(f'[alice]\nkey = "{old}"\n')
    keyring = load_keyring(None, None, file)
    file.write_text(f'[alice]\nkey = "{new}"\n')
    keyring.reload()
    assert keyring.tenant(old) is None
    alice = keyring.tenant(new)
    assert alice is not None
    assert alice.name == "alice"
    for wrong in ("[alice\n", "", '[alice]\nkey = "short"\n'):
        file.write_text(wrong)
        keyring.reload()
        assert keyring.tenant(new) == alice
    Keyring().reload()


def test_a_tenant_of_the_file_cannot_be_the_environments(tmp_path: Path) -> None:
    """They would share a cache, and see each other's reports."""
    file = tmp_path / "keys.toml"
    file.write_text('[default]\nkey = "bbbbbbbbbbbbbbbbbbbb"\n')
    with pytest.raises(ConfigError, match=r"\[default\] is also the tenant of a key in the environment"):
        load_keyring("a" * 16, None, file)
    assert load_keyring(None, None, file).guarded
