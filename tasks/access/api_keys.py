"""API keys of the console: who may use it, known by the digest of each key.

A key has 256 random bits, so that a plain digest of it reveals nothing. The file is read again
when it changes. A key may expire, and it may have some scopes only.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tasks.errors import ApiKeyNameError, ApiKeysError, UsageError
from tasks.jobs.job import SafeName
from tasks.strict_model import StrictModel

_PREFIX = "twk_"
_KEY = re.compile(r"twk_[A-Za-z0-9_-]{43}")
_CONSOLE = "console"


EXPIRES_SOON = timedelta(days=7)
"""How long before its end a key is reported."""
_MAX_LIFE = timedelta(days=3650)


class Scope(StrEnum):
    """What a key may be used for."""

    JOBS_READ = "jobs:read"
    """See jobs, their events, presets and the fleet."""
    JOBS_WRITE = "jobs:write"
    """Submit, preview, cancel, pause and resume jobs."""
    UPLOADS = "uploads"
    """Upload datasets, list and delete uploads."""
    FILES = "files"
    """Download results and validation images, and make links to them."""
    WEBHOOKS = "webhooks"
    """Create, list and revoke the webhook secrets of a tenant."""
    ADMIN = "admin"
    """What only operators may do, such as reading the audit log."""


@dataclass(frozen=True)
class Caller:
    """Owner of an API key: the one that makes a request.

    Attributes:
        name: The key's name.
        tenant: The tenant whose jobs the key is for; None for an operator, who sees all tenants.
        scopes: What the key may be used for; None allows all that its kind of key may have.
        expires: When the key expires; None for never.
    """

    name: str
    tenant: str | None
    scopes: frozenset[Scope] | None = None
    expires: datetime | None = None

    @property
    def account(self) -> str:
        """What limits count: the tenant, with all its keys, or an operator's key."""
        return f"key {self.name}" if self.tenant is None else f"tenant {self.tenant}"

    @property
    def actor(self) -> str:
        """Who acts, in the audit log."""
        return f"key {self.name}"

    @property
    def is_operator(self) -> bool:
        """Whether the caller sees all tenants."""
        return self.tenant is None

    @property
    def expires_soon(self) -> bool:
        """Whether the key expires within days."""
        return self.expires is not None and self.expires < datetime.now(UTC) + EXPIRES_SOON

    def allows(self, scope: Scope) -> bool:
        """Return whether the key has a scope; a tenant's key is never an administrator's."""
        is_possible = self.tenant is None or scope != Scope.ADMIN
        return is_possible and (self.scopes is None or scope in self.scopes)

    def sees(self, tenant: str) -> bool:
        """Return whether the caller may see a tenant's jobs."""
        return self.tenant is None or self.tenant == tenant


class KeyEntry(StrictModel):
    """Entry of an API key in the file."""

    name: SafeName
    tenant: SafeName | None
    """Null for an operator's key."""
    sha256: str
    """Digest of the key, in hex."""
    created: datetime
    expires: datetime | None = None
    """Null for never."""
    scopes: tuple[Scope, ...] | None = None
    """Null for all scopes of its kind."""

    @property
    def caller(self) -> Caller:
        """Owner of the key."""
        scopes = None if self.scopes is None else frozenset(self.scopes)
        return Caller(self.name, self.tenant, scopes, self.expires)

    @property
    def is_expired(self) -> bool:
        """Whether the key has expired."""
        return self.expires is not None and self.expires <= datetime.now(UTC)


_ENTRIES = TypeAdapter(tuple[KeyEntry, ...])


class ApiKeys:
    """API keys in a file.

    Args:
        path: The file; a missing one holds no keys.
        on_create: Called with a key before it is stored, while the file is locked.
        on_revoke: The same before a key is removed.

    Raises:
        ApiKeysError: From every method, when the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        on_create: Callable[[KeyEntry], None] = lambda _: None,
        on_revoke: Callable[[KeyEntry], None] = lambda _: None,
    ) -> None:
        self._path, self._on_create, self._on_revoke = path, on_create, on_revoke
        # Replaced as one, since several threads read: a revoked key must not return with the
        # version of a newer file.
        self._read: tuple[tuple[int, int, int] | None, dict[str, KeyEntry]] = None, {}

    def find(self, key: str) -> Caller | None:
        """Return the key's owner; None for an unknown or expired key."""
        return self.find_by_digest(digest_of(key)) if _KEY.fullmatch(key) else None

    def find_by_digest(self, digest: str) -> Caller | None:
        """Return the owner of the key with this digest; None unless it is known and valid."""
        entry = self._entries().get(digest)
        return None if entry is None or entry.is_expired else entry.caller

    def is_valid(self, caller: Caller) -> bool:
        """Return whether a caller's key is still known and valid."""
        return any(it.caller == caller and not it.is_expired for it in self.entries())

    def why_refused(self, key: str) -> str:
        """Return why a key has no owner."""
        entry = self._entries().get(digest_of(key))
        if entry is None or entry.expires is None:
            return "unknown API key"
        return f"API key {entry.name} expired at {entry.expires:%Y-%m-%d %H:%M} UTC; get a new one"

    def entries(self) -> list[KeyEntry]:
        """Return all keys, oldest first."""
        return list(self._entries().values())

    def create(
        self,
        name: str,
        tenant: str | None,
        *,
        expires_in: timedelta | None = None,
        scopes: Collection[Scope] | None = None,
    ) -> str:
        """Create a key.

        Args:
            name: The key's name.
            tenant: The tenant whose jobs the key is for; None creates an operator's key.
            expires_in: How long it is valid; None is forever.
            scopes: What it may be used for; None allows all that its kind of key may have.

        Returns:
            The key. Only its digest is stored.

        Raises:
            UsageError: The name or the tenant is malformed, the time or a scope impossible.
            ApiKeyNameError: The name is taken.
        """
        key = _PREFIX + secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        if expires_in is not None and not timedelta(0) < expires_in <= _MAX_LIFE:
            raise UsageError(f"a key expires after at most {_MAX_LIFE.days} days")
        if scopes is not None and tenant is not None and Scope.ADMIN in scopes:
            raise UsageError(f"only an operator's key may have the scope {Scope.ADMIN}")
        try:
            entry = KeyEntry(
                name=name,
                tenant=tenant,
                sha256=digest_of(key),
                created=now,
                expires=None if expires_in is None else now + expires_in,
                scopes=None if scopes is None else tuple(sorted(set(scopes))),
            )
        except ValidationError as error:
            invalid = " and ".join(str(problem["loc"][0]) for problem in error.errors())
            rule = "use letters, digits, and -_. between, at most 100 characters"
            raise UsageError(f"invalid {invalid}: {rule}") from error
        with self._locked():
            entries = self.entries()
            if any(other.name == name for other in entries):
                raise ApiKeyNameError(f"key {name} exists already; revoke it first")
            self._on_create(entry)
            self._write([*entries, entry])
        return key

    def revoke(self, name: str) -> None:
        """Revoke a key, at once.

        Raises:
            ApiKeyNameError: There is no key of this name.
        """
        with self._locked():
            revoked = [entry for entry in self.entries() if entry.name == name]
            if not revoked:
                raise ApiKeyNameError(f"there is no key {name}")
            self._on_revoke(revoked[0])
            self._write([entry for entry in self.entries() if entry.name != name])

    def _entries(self) -> dict[str, KeyEntry]:
        try:
            # On a shared folder, opening shows the newest file where the attributes of a path may
            # be cached.
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            known_version, by_digest = self._read
            if version != known_version:
                entries = _ENTRIES.validate_json(self._path.read_bytes())
                by_digest = {entry.sha256: entry for entry in entries}
                self._read = version, by_digest
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ApiKeysError(self._path, f"cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise ApiKeysError(self._path, "is damaged") from error
        return by_digest

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the file against changes by other processes."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.with_name(f"{self._path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ApiKeysError(self._path, f"cannot be written: {error.strerror}") from error

    def _write(self, entries: list[KeyEntry]) -> None:
        documents = [entry.model_dump(mode="json") for entry in entries]
        write_private(self._path, json.dumps(documents, indent=2) + "\n")


def digest_of(key: str) -> str:
    """Return the digest of a key, in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def ensure_console_key(api_keys: ApiKeys, path: Path) -> None:
    """Keep this machine's operator key in a file; replace it when it is no longer valid.

    Raises:
        ApiKeysError: The API keys or the file cannot be written.
    """
    try:
        key = path.read_text("utf-8").strip() if path.exists() else ""
        if api_keys.find(key) is not None:
            return
        if any(entry.name == _CONSOLE for entry in api_keys.entries()):
            api_keys.revoke(_CONSOLE)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, api_keys.create(_CONSOLE, None) + "\n")
    except OSError as error:
        raise ApiKeysError(path, f"cannot be written: {error.strerror}") from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
