"""``training-worker cache ls``, ``gc`` and ``verify``."""

from collections import Counter
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.table import Table

from tasks.cache.eviction import drop, drop_damaged, unused
from tasks.cache.index import CacheRegistry, Pack
from tasks.errors import ErrorCode, JobError
from tasks.settings.settings import Settings
from tasks.state.job_store import connect
from tasks.store import Store
from worker.cli.client import client_of
from worker.cli.output import print_json, stdout


def run(
    settings: Settings,
    *,
    action: str,
    json: bool,
    unused_days: float | None = None,
    max_size: str | None = None,
    dry_run: bool = False,
) -> int:
    """List the fleet's cache, remove what nobody uses, or read all of it.

    Returns:
        The exit code: 1 where ``verify`` found damage.
    """
    client, store = client_of(settings), Store(settings.resolved_store_url)
    connection = connect(client.broker_url)
    registry = CacheRegistry(connection, settings.job_ttl, settings.visibility_timeout)
    # What the index does not know lies in the store all the same.
    registry.rebuild(store)
    packs = registry.packs()
    if action == "verify":
        damaged = drop_damaged(registry, store, [pack.key for pack in packs])
        _show({"packs": len(packs), "damaged": damaged}, json=json)
        return 1 if damaged else 0
    if action == "gc":
        max_age = None if unused_days is None else timedelta(days=unused_days)
        going = unused(packs, max_age=max_age, max_bytes=_bytes(max_size))
        if not dry_run:
            drop(registry, store, [pack.key for pack in going])
        left = sum(pack.size for pack in packs) - sum(pack.size for pack in going)
        freed = sum(pack.size for pack in going)
        _show({"removed": len(going), "freed_bytes": freed, "left_bytes": left}, json=json)
        return 0
    _list(packs, json=json)
    return 0


def _bytes(text: str | None) -> int | None:
    try:
        return None if text is None else int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        message = f"--max-size: {text!r} is no size; write it like 500GB or 2TiB"
        raise JobError(message, ErrorCode.INVALID_JOB) from error


def _list(packs: list[Pack], *, json: bool) -> None:
    kinds = [PurePosixPath(pack.key).parts[1] for pack in packs]
    count, size = Counter(kinds), Counter[str]()
    for kind, pack in zip(kinds, packs, strict=True):
        size[kind] += pack.size
    used = {kind: pack.used_at for kind, pack in zip(kinds, packs, strict=True)}
    if json:
        rows = {k: {"packs": count[k], "bytes": size[k], "used_at": used[k]} for k in sorted(count)}
        print_json(rows)
        return
    table = Table("kind", "packs", "size", "last used")
    for kind in sorted(count):
        at = datetime.fromtimestamp(used[kind]).astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(kind, str(count[kind]), ByteSize(size[kind]).human_readable(), at)
    stdout.print(table)


def _show(found: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json(found)
        return
    for name, value in found.items():
        shown = ByteSize(value).human_readable() if "bytes" in name else value
        stdout.print(f"{name.replace('_', ' ')}: {shown}", markup=False)
