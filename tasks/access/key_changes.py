"""Changes of API keys on their way to the audit log.

A change is noted in a file beside the keys before it is made, and taken to the audit log once the
broker is available: so keys are revoked during an outage too, and no change is lost. A crash
between the two may give a change two entries.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from tasks.access.api_keys import ApiKeys, KeyEntry, Scope
from tasks.errors import ApiKeysError
from tasks.state.audit import Action, AuditLog
from tasks.strict_model import StrictModel

logger = logging.getLogger(__name__)


class _Change(StrictModel):
    at: datetime
    actor: str
    action: Action
    name: str
    tenant: str | None
    expires: datetime | None
    scopes: tuple[Scope, ...] | None


class KeyChanges:
    """The changes that are not in the audit log yet.

    Args:
        api_keys_file: The file of the keys.

    Raises:
        ApiKeysError: From every method, when the file cannot be read or written.
    """

    def __init__(self, api_keys_file: Path) -> None:
        self._api_keys_file = api_keys_file
        self._path = api_keys_file.with_suffix(".changes")

    def forward(self, audit: AuditLog) -> None:
        """Take the changes to the audit log, oldest first.

        Raises:
            RedisError: The broker is unavailable; the changes stay.
        """
        if not self._path.exists() or not self._path.stat().st_size:
            return
        with self._locked() as file:
            file.seek(0)
            for line in file:
                try:
                    change = _Change.model_validate_json(line)
                except ValidationError:
                    logger.warning("a change of the API keys was not written whole: %r", line[:200])
                    continue
                expires = change.expires
                audit.record(
                    change.actor,
                    change.action,
                    change.name,
                    tenant=change.tenant,
                    at=f"{change.at:%Y-%m-%dT%H:%M:%SZ}",
                    expires=None if expires is None else f"{expires:%Y-%m-%dT%H:%M:%SZ}",
                    scopes=None if change.scopes is None else " ".join(change.scopes),
                )
            file.truncate(0)

    def api_keys(self, actor: str) -> ApiKeys:
        """Return the keys, whose changes by this actor are noted."""
        return ApiKeys(
            self._api_keys_file,
            on_create=partial(self._note, actor, Action.KEY_CREATE),
            on_revoke=partial(self._note, actor, Action.KEY_REVOKE),
        )

    def _note(self, actor: str, action: Action, entry: KeyEntry) -> None:
        """Note a change, for good, before it is made."""
        change = _Change(
            at=datetime.now(UTC),
            actor=actor,
            action=action,
            name=entry.name,
            tenant=entry.tenant,
            expires=entry.expires,
            scopes=entry.scopes,
        )
        with self._locked() as file:
            file.write(change.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                self._path.chmod(0o600)
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
        except OSError as error:
            raise ApiKeysError(self._path, f"cannot be written: {error.strerror}") from error
