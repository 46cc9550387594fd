"""The ids of jobs that come through the console.

Ids are one space for the whole fleet. What a tenant calls a job is therefore made its own, or it
would learn of another tenant's job by trying names, and might be given it.
"""

import hashlib
import json
import re
from typing import Any

from console.errors import BadRequestError
from tasks.api_keys import Caller
from tasks.errors import InvalidJobError, Problem

_DIGITS = 12
_LONGEST = 100 - _DIGITS - 1
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def own_id(tenant: str, job_id: str) -> str:
    """The id of a tenant's job that it calls so: those of two tenants never meet."""
    digest = hashlib.sha256(f"{tenant}/{job_id}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{job_id}-{digest[:_DIGITS]}"


def with_id(account: Caller, document: Any, idempotency_key: str | None) -> Any:
    """The document with the id that its job is to have.

    Args:
        account: Who submits it.
        document: The job.
        idempotency_key: Stands for the job where it has no id of its own.

    Raises:
        BadRequestError: The key is none.
        InvalidJobError: The id is too long.
    """
    if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
        raise BadRequestError("an Idempotency-Key is 1 to 255 visible ASCII characters")
    if not isinstance(document, dict):
        return document
    given = document.get("id")
    if given is None and idempotency_key is not None:
        named = json.dumps([account.tenant, account.name, idempotency_key])
        return {**document, "id": hashlib.sha256(named.encode()).hexdigest()[:24]}
    if account.tenant is None or not isinstance(given, str):
        return document
    if len(given) > _LONGEST:
        raise InvalidJobError([Problem("id", f"has more than {_LONGEST} characters")])
    return {**document, "id": own_id(account.tenant, given)}
