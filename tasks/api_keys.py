"""Who may use the console and its API: accounts, known by the digests of their keys.

A key has 256 bits drawn at random, so that a plain digest of it tells nobody anything. The file is
read anew when it changes.
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

from tasks.errors import AccountNameError, ApiKeysError
from tasks.jobs.job import SafeName
from tasks.strict_model import StrictModel

_MARK = "twk_"
_KEY = re.compile(r"twk_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Account:
    """Somebody with a key.

    Attributes:
        name: The key's name.
        tenant: Whose jobs it is for; None is an operator, who sees those of all.
    """

    name: str
    tenant: str | None

    def sees(self, tenant: str) -> bool:
        """Whether a tenant's jobs are for this account's eyes."""
        return self.tenant is None or self.tenant == tenant


class KeyEntry(StrictModel):
    """What is kept of a key."""

    name: SafeName
    tenant: SafeName | None
    """Null for an operator's."""
    sha256: str
    """The key's digest, in hex."""
    created: datetime

    @property
    def account(self) -> Account:
        """Whose key it is."""
        return Account(self.name, self.tenant)


_ENTRIES = TypeAdapter(tuple[KeyEntry, ...])


class ApiKeys:
    """The accounts that a file holds.

    Args:
        path: The file; one that is not there holds none.

    Raises:
        ApiKeysError: From every method, where it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._by_digest: dict[str, KeyEntry] = {}

    def of_key(self, key: str) -> Account | None:
        """Whose key this is; None where it is nobody's."""
        return self.of_digest(digest_of(key)) if _KEY.fullmatch(key) else None

    def of_digest(self, digest: str) -> Account | None:
        """Whose key has this digest; None where it is nobody's any more."""
        entry = self._entries().get(digest)
        return None if entry is None else entry.account

    def entries(self) -> list[KeyEntry]:
        """All keys, the oldest first."""
        return list(self._entries().values())

    def add(self, name: str, tenant: str | None) -> str:
        """Make a key.

        Args:
            name: What it is called.
            tenant: Whose jobs it is for; None makes an operator's.

        Returns:
            The key, which is kept nowhere.

        Raises:
            AccountNameError: There is one of this name, or the name or tenant cannot be one.
        """
        key = _MARK + secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        try:
            entry = KeyEntry(name=name, tenant=tenant, sha256=digest_of(key), created=now)
        except ValidationError as error:
            wrong = " and ".join(str(problem["loc"][0]) for problem in error.errors())
            problem = "letters, digits and -_. between, at most 100"
            raise AccountNameError(f"{wrong}: may hold {problem}") from error
        with self._changing():
            entries = self.entries()
            if any(it.name == name for it in entries):
                raise AccountNameError(f"there is a key {name} already; revoke it first")
            self._write([*entries, entry])
        return key

    def revoke(self, name: str) -> None:
        """Make a key worthless.

        Raises:
            AccountNameError: There is none of this name.
        """
        with self._changing():
            entries = self.entries()
            left = [it for it in entries if it.name != name]
            if len(left) == len(entries):
                raise AccountNameError(f"there is no key {name}")
            self._write(left)

    def _entries(self) -> dict[str, KeyEntry]:
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                found = _ENTRIES.validate_json(self._path.read_bytes())
                self._by_digest, self._seen = {it.sha256: it for it in found}, seen
        except FileNotFoundError:
            self._by_digest, self._seen = {}, None
        except OSError as error:
            raise ApiKeysError(self._path, f"cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise ApiKeysError(self._path, "is damaged") from error
        return self._by_digest

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the file against other processes that change it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.with_name(f"{self._path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ApiKeysError(self._path, f"cannot be written: {error.strerror}") from error

    def _write(self, entries: list[KeyEntry]) -> None:
        listed = [entry.model_dump(mode="json") for entry in entries]
        write_private(self._path, json.dumps(listed, indent=2) + "\n")


def digest_of(key: str) -> str:
    """The digest that a key is known by."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def console_key(accounts: ApiKeys, path: Path) -> None:
    """Keep an operator's key of this machine's own in a file, made anew where it is worth nothing.

    Raises:
        ApiKeysError: The accounts or the key cannot be written.
    """
    try:
        kept = path.read_text("utf-8").strip() if path.exists() else ""
        if accounts.of_key(kept) is not None:
            return
        if any(entry.name == "console" for entry in accounts.entries()):
            accounts.revoke("console")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, accounts.add("console", None) + "\n")
    except OSError as error:
        raise ApiKeysError(path, f"cannot be kept: {error.strerror}") from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
