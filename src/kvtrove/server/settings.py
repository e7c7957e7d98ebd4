"""Settings of the server, and the limits that keep it standing under abuse."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from kvtrove.config import ConfigError
from kvtrove.server.chat.thoughts import thoughts_named
from kvtrove.server.chat.tool_forms import format_named


@dataclass(frozen=True)
class Limits:
    """What one request and all of them together may ask.

    max_body_bytes: of a request. max_nesting: levels of arrays and objects in it. max_prompt_tokens: None is what the
    context holds. max_prompts: of one completion. max_inputs: texts of one request for vectors or scores.
    max_n: sequences per prompt (n, best_of, beams).
    max_stops, max_stop_chars: stop strings and their lengths.
    text_timeout: seconds that a chat template may take.
    max_schema_bytes: JSON schema, grammar or all tools of a request. max_concurrent: requests in flight.
    max_queue: sequences that wait for the engine; one more request is refused with 429 then.
    max_connections: open at once, as far as there are file descriptors; one more pushes out an idle one or gets 503.
    request_timeout: seconds a request may take. idle_timeout: seconds for a client to send its body, or read an event.
    keep_alive: seconds of silence after which a stream shows that it still lives.
    step_timeout: seconds after which a step of the engine counts as hung; whoever is at fault is ended.
    """

    max_body_bytes: int = 4 * 2**20
    max_nesting: int = 128
    max_prompt_tokens: int | None = None
    max_prompts: int = 256
    max_inputs: int = 2048
    max_n: int = 32
    max_logprobs: int = 20
    max_stops: int = 16
    max_stop_chars: int = 256
    max_schema_bytes: int = 128 * 2**10
    max_concurrent: int = 1024
    max_queue: int = 256
    max_connections: int = 4096
    request_timeout: float = 600.0
    text_timeout: float = 10.0
    idle_timeout: float = 60.0
    keep_alive: float = 10.0
    step_timeout: float = 300.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise ConfigError(f"{name}: {value} must be larger than zero")


@dataclass(frozen=True)
class ServerSettings:
    """Everything about the server but its engine and its keys.

    served_model_names: names that requests may use; the first is the one that answers carry.
    cors_origins: web pages that may call the server ("*" is all of them); none by default.
    drain_timeout: seconds that accepted requests have to finish after SIGTERM.
    tool_format, reasoning_parser: how this model writes tool calls and thoughts (names of `chat.tool_forms` and of
    `chat.thoughts`); "auto" reads them off the chat template.
    response_cache: a size such as "64MiB", or redis://host/db: keeps whole answers at temperature 0; None keeps none.
    response_cache_ttl: seconds that an answer is kept.
    ssl_certfile, ssl_keyfile: PEM files; with the first, the server speaks HTTPS. root_path: where a proxy mounts it.
    stable_prefix: volatile lines at the head of a system message go behind the conversation, unless a request says no.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ("kvtrove",)
    cors_origins: tuple[str, ...] = ()
    drain_timeout: float = 60.0
    tool_format: str = "auto"
    reasoning_parser: str = "auto"
    stable_prefix: bool = False
    response_cache: str | None = None
    response_cache_ttl: float = 3600.0
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    root_path: str = ""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: {self.port} must lie between 0 (any free one) and 65535")
        if self.drain_timeout < 0:
            raise ConfigError(f"drain_timeout: {self.drain_timeout} must be at least 0 seconds")
        for name in ("ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ConfigError(f"{name}: there is no file {path}")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ConfigError("ssl_keyfile: a key needs its certificate, too; give --ssl-certfile FILE")
        if self.ssl_certfile is not None:
            _check_certificate(self.ssl_certfile, self.ssl_keyfile)
        if self.root_path and not self.root_path.startswith("/"):
            raise ConfigError(f"root_path: {self.root_path!r} must begin with a slash, such as /llm")
        format_named(self.tool_format)
        thoughts_named(self.reasoning_parser)
        if not self.served_model_names or not all(self.served_model_names):
            raise ConfigError("served_model_names: give at least one name, and none that is empty")


def _check_certificate(certificate: Path, key: Path | None) -> None:
    """ConfigError unless a server can start with them. A key with a passphrase is asked for no passphrase."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is one
        where = f"ssl_certfile: {certificate} with " + (f"ssl_keyfile {key}" if key else "its key in the same file")
        raise ConfigError(
            f"{where} cannot be used ({error}); both are PEM and belong together, such as of `openssl req -x509 "
            "-nodes -newkey rsa:2048 -subj /CN=localhost -keyout key.pem -out cert.pem`"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, without port) can only be reached from this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
