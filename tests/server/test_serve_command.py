"""`kvtrove serve` on the command line: what is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvtrove.cli.main import app


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "give --api-key KEY (or KVTROVE_API_KEY, or --api-keys FILE)"),
        (["--host", "no.such.host.invalid"], "can be reached from other machines"),
        (["--port", "70000"], "port: 70000 must lie between"),
        (["--api-keys", "/no/such/file"], "cannot read /no/such/file"),
        (["--log-level", "loud"], "--log-level: 'loud' is not one of"),
        (["--tool-format", "xml"], "tool_format: 'xml' is not one of auto, harmony, mistral"),
        (["--tool-call-parser", "xml"], "tool_format: 'xml' is not one of auto, harmony, mistral"),
        (["--max-queue", "0"], "max_queue: 0 must be larger than zero"),
        (["--max-body-size", "much"], "max_body_size: cannot read 'much' as a size"),
        (["--drain-timeout", "-1"], "drain_timeout"),
        (["/no/such/model", "--port", "0"], "/no/such/model"),
        (["--api-key", "short"], "a key needs at least 16"),
        (["--api-key", ""], "a key needs at least 16"),
        (["--ssl-certfile", __file__], "its key in the same file cannot be used ([SSL] PEM lib"),
        (["--ssl-certfile", "/no/such/cert"], "ssl_certfile: there is no file /no/such/cert"),
        (["--ssl-keyfile", __file__], "ssl_keyfile: a key needs its certificate"),
        (["--root-path", "llm"], "root_path: 'llm' must begin with a slash"),
        (["--chat-template", "nowhere", "--port", "0"], "chat_template: 'nowhere' is no file, and no Jinja template"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(flags: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", *flags], env={"KVTROVE_API_KEY": None, "KVTROVE_ADMIN_KEY": None})
    assert result.exit_code == 2, result.output
    assert message in result.output
    first, *rest = result.output.splitlines()
    assert len(rest) == ("kvtrove.cli.serve kvtrove" in first), "the line that says that it starts, and the error"


def test_a_short_key_in_the_environment_is_refused_and_not_shown(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0"], env={"KVTROVE_API_KEY": "secret"})
    assert result.exit_code == 2
    assert "KVTROVE_API_KEY: a key needs at least 16" in result.output
    assert "secret" not in result.output
