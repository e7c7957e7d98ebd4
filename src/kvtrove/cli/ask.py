"""A question to a running server, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from kvtrove.config import ConfigError

HINTS = {401: "give --api-key KEY", 404: "it is no server of KVTrove"}


def ask(
    url: str, path: str, key: str | None, body: Mapping[str, Any] | None = None, timeout: float = 10
) -> dict[str, Any]:
    """The answer's JSON. body: sent with POST. ConfigError says what the server says, or that it does not answer."""
    address = f"{url.rstrip('/').removesuffix('/v1')}{path}"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"{url} is no address; write for example http://127.0.0.1:8000")
    headers = {"content-type": "application/json"} | ({} if key is None else {"authorization": f"Bearer {key}"})
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data=content, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        said = _said(error) or HINTS.get(error.code)
        raise ConfigError(f"{address} answers {error.code}{f'; {said}' if said else ''}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{address} does not answer: {getattr(error, 'reason', error)}") from error
    return found


def _said(error: urllib.error.HTTPError) -> str | None:
    """The server's own words, where it has said something about this request."""
    if error.code in (401, 404) and error.url.endswith("/v1/status"):
        return None
    try:
        said = json.load(error)["error"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(said)
