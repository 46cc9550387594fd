"""Signed links: each downloads one published file for an hour at most, without a key.

A link's signature is an HMAC over method, job, file, key and expiry. Its secret is made from two:
one of the fleet in the broker, which all consoles share, and the digest of the key that made the
link. So a link ends with its key, and neither a copy of the key file nor a reader of the broker can
sign one.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import cast
from urllib.parse import quote, urlencode

from redis import Redis

from console.errors import UnauthorizedError
from console.services.jobs.job_files import JobFiles
from console.services.keys import LINK_SECRET
from console.services.shared_values import available
from console.services.threads import in_thread
from tasks.access.api_keys import ApiKeys, Caller, KeyEntry, Scope
from tasks.redis_script import Key, ScriptFolder
from tasks.state.audit import Action, AuditLog

MAX_LIFE_S = 3600
"""The longest life of a link in seconds."""
_SECRET_TTL_S = 86_400
_EXPIRES = re.compile(r"[0-9]{1,12}")

_lua = ScriptFolder(files("console.services") / "lua", {})


@_lua.script
def link_secret(*, secret_key: Key, candidate: str, ttl_s: int) -> list[str]:
    """Return the fleet's secret of links and the time."""
    raise NotImplementedError


@dataclass(frozen=True)
class FileLink:
    """A signed link.

    Attributes:
        path: Its path and query below the API.
        expires_at: When it ends.
    """

    path: str
    expires_at: datetime


class FileLinks:
    """Makes and checks links; thread-safe.

    Args:
        client: A connection to the broker.
        api_keys: The API keys.
        files: The files of jobs.
        audit: Records links.
    """

    def __init__(self, client: Redis, api_keys: ApiKeys, files: JobFiles, audit: AuditLog) -> None:
        self._redis, self._api_keys, self._files, self._audit = client, api_keys, files, audit

    @in_thread
    def create(self, caller: Caller, job_id: str, name: str, life_s: int) -> FileLink:
        """Make a link to a file.

        Args:
            caller: The caller, whose key the link ends with.
            job_id: A job that the caller sees.
            name: A file that the job has published.
            life_s: The link's life in seconds; it ends with the key if that expires before.

        Raises:
            UnknownJobError: The caller sees no job of this id.
            NotFoundError: The job has published no file of this name.
            UnauthorizedError: The key was revoked meanwhile.
            UnavailableError: The broker is unavailable.
        """
        record = self._files.record_with(caller, job_id, name)
        entry = next((it for it in self._api_keys.entries() if it.name == caller.name), None)
        if entry is None:  # revoked since the request began
            raise UnauthorizedError("unknown API key")
        with available():
            secret, now = link_secret(
                self._redis,
                secret_key=LINK_SECRET,
                candidate=secrets.token_urlsafe(32),
                ttl_s=_SECRET_TTL_S,
            )
            self._audit.record(
                caller.actor,
                Action.LINK_CREATE,
                record.id,
                tenant=record.job.tenant,
                file=name,
                life_s=life_s,
            )
        expires = int(now) + min(life_s, MAX_LIFE_S)
        if entry.expires is not None:
            expires = min(expires, int(entry.expires.timestamp()))
        signature = _signature(secret, entry, record.id, name, str(expires))
        query = urlencode({"key": _key_id(entry), "expires": expires, "signature": signature})
        path = f"/jobs/{quote(record.id)}/files/{quote(name)}?{query}"
        return FileLink(path, datetime.fromtimestamp(expires, UTC))

    @in_thread
    def find_caller(self, job_id: str, name: str, query: Mapping[str, str]) -> Caller | None:
        """Return for whom a link downloads a file; None unless it is valid.

        Raises:
            UnavailableError: The broker is unavailable.
        """
        expires, signature = query.get("expires", ""), query.get("signature", "")
        entry = self._entry_of(query.get("key", ""))
        with available():
            secret = cast("str | None", self._redis.get(LINK_SECRET))
            now, _ = self._redis.time()
        if entry is None or secret is None or not _EXPIRES.fullmatch(expires):
            return None
        expected = _signature(secret, entry, job_id, name, expires)
        is_signed = hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))
        left_s = int(expires) - int(now)
        if not is_signed or not 0 < left_s <= MAX_LIFE_S:
            return None
        caller = self._api_keys.find_by_digest(entry.sha256)
        if caller is None or not caller.allows(Scope.FILES):
            return None
        return replace(caller, scopes=frozenset({Scope.FILES}))

    def _entry_of(self, key_id: str) -> KeyEntry | None:
        return next((entry for entry in self._api_keys.entries() if _key_id(entry) == key_id), None)


def _key_id(entry: KeyEntry) -> str:
    """Return what names a key in links: not its name, which strangers need not know."""
    return hashlib.sha256(f"link {entry.sha256}".encode()).hexdigest()[:16]


def _signature(secret: str, entry: KeyEntry, job_id: str, name: str, expires: str) -> str:
    """Return the signature of a link, in base64 for URLs."""
    of_key = hmac.digest(secret.encode(), entry.sha256.encode(), "sha256")
    message = json.dumps(["GET", job_id, name, _key_id(entry), expires])
    digest = hmac.digest(of_key, message.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
