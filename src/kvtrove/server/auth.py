"""Who asks: API keys, tenants, and what a tenant may do.

A key file is TOML, one table per tenant:

    [alice]
    key = "..."             # required, at least 16 characters
    shared = true           # its cache is shared with all other tenants that say so (default: its own)
    admin = true            # may call the admin routes, and only those that need it (default: false)
    max_concurrent = 8      # requests in flight at once (default: no limit of its own)
    requests_per_minute = 60
    tokens_per_minute = 100_000     # prompt and answer; prompt tokens that the cache served are free
    burst_seconds = 60      # so many seconds' worth of both rates may come at once (default: a minute's)
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtrove.config import ConfigError, nearest

log = logging.getLogger(__name__)
MIN_KEY_LENGTH = 16
_KEY_FILE_FIELDS = {
    **{"key": str, "shared": bool, "admin": bool, "max_concurrent": int},
    **{"requests_per_minute": int, "tokens_per_minute": int, "burst_seconds": int},
}
_COUNTS = ("max_concurrent", "requests_per_minute", "tokens_per_minute", "burst_seconds")


@dataclass(frozen=True)
class Rates:
    """What a tenant may ask per minute; None is no limit. burst_seconds: how much of it may come at once."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    burst_seconds: int = 60


@dataclass(frozen=True)
class Tenant:
    """`salt` is the root of all its cache keys: tenants with different salts never share a block."""

    name: str
    salt: str = ""
    admin: bool = False
    max_concurrent: int | None = None
    rates: Rates = Rates()

    def cache_salt(self, own: str | None) -> str:
        """The salt of one request; `own` is its `cache_salt` field and separates further within the tenant."""
        return self.salt if not own else digest("request", self.salt, own)


def tenant_salt(name: str) -> str:
    """The same in every process and free of secrets, so that blocks kept elsewhere stay findable when a key changes."""
    return digest("tenant", name)


def digest(*parts: str) -> str:
    framed = b"".join(len(raw).to_bytes(8, "little") + raw for raw in (part.encode(errors="replace") for part in parts))
    return hashlib.sha256(framed).hexdigest()


class Keyring:
    """The keys that open the server. Without any, everyone is one tenant, and the server must stay on loopback.

    source: reads them again (`reload`).
    """

    def __init__(
        self, keys: Iterable[tuple[str, Tenant]] = (), source: Callable[[], Iterable[tuple[str, Tenant]]] | None = None
    ) -> None:
        self._source = source
        self._tenants = _checked_tenants(keys)

    def reload(self) -> None:
        """Take the keys that the source has now; when they are wrong, or all are gone, the old ones stay."""
        if self._source is None:
            log.info("there is no file of keys to read again")
            return
        try:
            tenants = _checked_tenants(self._source())
            if self.guarded and not tenants:
                raise ConfigError("there is no key any more")
        except ConfigError as error:
            log.error("the keys stay as they are: %s", error)
        else:
            self._tenants = tenants
            log.warning("the keys were read again: %d", len(tenants))

    @property
    def guarded(self) -> bool:
        return bool(self._tenants)

    def tenant(self, presented: str | None) -> Tenant | None:
        """The owner of a key, or None. Takes the same time whichever key is wrong, and wherever."""
        if not self._tenants:
            return Tenant("local")
        wanted = hashlib.sha256((presented or "").encode(errors="replace")).digest()
        found = None
        for key, tenant in self._tenants:
            if hmac.compare_digest(key, wanted):
                found = tenant
        return found


def _checked_tenants(keys: Iterable[tuple[str, Tenant]]) -> list[tuple[bytes, Tenant]]:
    tenants = [(hashlib.sha256(key.encode()).digest(), tenant) for key, tenant in keys]
    if len({key for key, _ in tenants}) != len(tenants):
        raise ConfigError("api_keys: two tenants have the same key; give each its own")
    names = [tenant.name for _, tenant in tenants]
    for name in names:
        if names.count(name) > 1:  # they would share a cache and see each other's reports
            raise ConfigError(
                f"api_keys: [{name}] is also the tenant of a key in the environment "
                "(KVTROVE_API_KEY is `default`, KVTROVE_ADMIN_KEY is `admin`); give it another name"
            )
    return tenants


def load_keyring(api_key: str | None, admin_key: str | None, file: Path | None) -> Keyring:
    """Keys of the environment (`KVTROVE_API_KEY`, `KVTROVE_ADMIN_KEY`) and of a key file together.

    Raises ConfigError naming what is wrong, never the key itself.
    """

    def read() -> list[tuple[str, Tenant]]:
        return _read_keys(api_key, admin_key, file)

    return Keyring(read(), None if file is None else read)


def _read_keys(api_key: str | None, admin_key: str | None, file: Path | None) -> list[tuple[str, Tenant]]:
    keys = []
    if api_key is not None:
        keys.append((_checked(api_key, "KVTROVE_API_KEY"), Tenant("default", tenant_salt("default"))))
    if admin_key is not None:
        keys.append((_checked(admin_key, "KVTROVE_ADMIN_KEY"), Tenant("admin", tenant_salt("admin"), admin=True)))
    if file is not None:
        keys += [_read_tenant(name, table, file) for name, table in _read_file(file).items()]
    if admin_key is not None and len(keys) == 1:
        raise ConfigError(
            "KVTROVE_ADMIN_KEY: there is no ordinary key beside it; set KVTROVE_API_KEY or --api-keys too"
        )
    return keys


def _read_file(file: Path) -> Mapping[str, Any]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-keys: cannot read {file}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--api-keys: {file} is not TOML: {error}") from error
    if not tables:
        raise ConfigError(f'--api-keys: {file} holds no key; write [name] and below it key = "..."')
    return tables


def _read_tenant(name: str, table: Any, file: Path) -> tuple[str, Tenant]:
    where = f"--api-keys: {file}: [{name}]"
    if not isinstance(table, dict):
        raise ConfigError(f'{where} must be a table; write [{name}] and below it key = "..."')
    for field, value in table.items():
        kind = _KEY_FILE_FIELDS.get(field)
        if kind is None:
            raise ConfigError(f"{where}: unknown field {field!r}{nearest(field, _KEY_FILE_FIELDS)}")
        if type(value) is not kind:
            raise ConfigError(f"{where}: {field} must be a {kind.__name__}, not {type(value).__name__}")
    if "key" not in table:
        raise ConfigError(f"{where}: has no key")
    for field in _COUNTS:
        if table.get(field, 1) < 1:
            raise ConfigError(f"{where}: {field}: {table[field]} must be at least 1")
    salt = "" if table.get("shared", False) else tenant_salt(name)
    rates = Rates(**{name: table[name] for name in _COUNTS[1:] if name in table})
    tenant = Tenant(name, salt, table.get("admin", False), table.get("max_concurrent"), rates)
    return _checked(table["key"], where), tenant


def _checked(key: str, where: str) -> str:
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or any(c.isspace() for c in key):
        raise ConfigError(
            f"{where}: a key needs at least {MIN_KEY_LENGTH} ASCII characters without spaces, for example what "
            "`openssl rand -hex 24` prints"
        )
    return key
