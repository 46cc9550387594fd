"""API keys of the console: who may use it, known by the digest of each key.

A key has 256 random bits, so that a plain digest of it reveals nothing. The file is read again
when it changes.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tasks.errors import ApiKeyNameError, ApiKeysError, UsageError
from tasks.jobs.job import SafeName
from tasks.strict_model import StrictModel

_PREFIX = "twk_"
_KEY = re.compile(r"twk_[A-Za-z0-9_-]{43}")
_CONSOLE = "console"


@dataclass(frozen=True)
class Caller:
    """Owner of an API key: the one that makes a request.

    Attributes:
        name: The key's name.
        tenant: The tenant whose jobs the key is for; None for an operator, who sees all tenants.
    """

    name: str
    tenant: str | None

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

    @property
    def caller(self) -> Caller:
        """Owner of the key."""
        return Caller(self.name, self.tenant)


_ENTRIES = TypeAdapter(tuple[KeyEntry, ...])


class ApiKeys:
    """API keys in a file.

    Args:
        path: The file; a missing one holds no keys.

    Raises:
        ApiKeysError: From every method, when the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._by_digest: dict[str, KeyEntry] = {}

    def find(self, key: str) -> Caller | None:
        """Return the key's owner; None for an unknown key."""
        return self.find_by_digest(digest_of(key)) if _KEY.fullmatch(key) else None

    def find_by_digest(self, digest: str) -> Caller | None:
        """Return the owner of the key with this digest; None for an unknown or revoked key."""
        entry = self._entries().get(digest)
        return None if entry is None else entry.caller

    def entries(self) -> list[KeyEntry]:
        """Return all keys, oldest first."""
        return list(self._entries().values())

    def create(self, name: str, tenant: str | None) -> str:
        """Create a key.

        Args:
            name: The key's name.
            tenant: The tenant whose jobs the key is for; None creates an operator's key.

        Returns:
            The key. Only its digest is stored.

        Raises:
            UsageError: The name or the tenant is malformed.
            ApiKeyNameError: The name is taken.
        """
        key = _PREFIX + secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        try:
            entry = KeyEntry(name=name, tenant=tenant, sha256=digest_of(key), created=now)
        except ValidationError as error:
            invalid = " and ".join(str(problem["loc"][0]) for problem in error.errors())
            rule = "use letters, digits, and -_. between, at most 100 characters"
            raise UsageError(f"invalid {invalid}: {rule}") from error
        with self._locked():
            entries = self.entries()
            if any(other.name == name for other in entries):
                raise ApiKeyNameError(f"key {name} exists already; revoke it first")
            self._write([*entries, entry])
        return key

    def revoke(self, name: str) -> None:
        """Revoke a key, at once.

        Raises:
            ApiKeyNameError: There is no key of this name.
        """
        with self._locked():
            entries = self.entries()
            remaining = [entry for entry in entries if entry.name != name]
            if len(remaining) == len(entries):
                raise ApiKeyNameError(f"there is no key {name}")
            self._write(remaining)

    def _entries(self) -> dict[str, KeyEntry]:
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            if version != self._version:
                entries = _ENTRIES.validate_json(self._path.read_bytes())
                self._by_digest = {entry.sha256: entry for entry in entries}
                self._version = version
        except FileNotFoundError:
            self._by_digest, self._version = {}, None
        except OSError as error:
            raise ApiKeysError(self._path, f"cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise ApiKeysError(self._path, "is damaged") from error
        return self._by_digest

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
