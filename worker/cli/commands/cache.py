"""Commands on the fleet's cache of encoder outputs: list, prune and verify it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.command import Json, command, finite
from worker.cli.help import Group, about

if TYPE_CHECKING:
    from tasks.cache.index import PackIndex
    from tasks.settings.settings import Settings
    from tasks.store import Store

commands = typer.Typer(
    cls=Group, help="Manage the fleet's cache of encoder outputs.", no_args_is_help=True
)


@commands.command("list", **about("cache list", docs="guides/failures.md"))
@command
def list_packs(settings: "Settings", json: Json = False) -> None:
    """Show the cache by kind of entry: packs, size, last use."""
    from worker.cli.reports.fleet_tables import cache_document, cache_table
    from worker.cli.reports.output import print_json, print_table

    index, _ = _open(settings)
    packs = index.packs()
    if json:
        print_json(cache_document(packs))
    else:
        print_table(cache_table(packs), "the cache is empty")


@commands.command(
    **about(
        "cache prune --unused-days 30 --dry-run",
        "cache prune --max-size 500GB",
        docs="guides/failures.md",
    )
)
@command
def prune(
    settings: "Settings",
    unused_days: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=36_500,
            help="Remove packs that no job has used for this many days, and captions that a "
            "model wrote before then.",
            callback=finite,
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            help="Remove the least recently used packs until the cache is no larger, like 500GB."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be removed; remove nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove unused packs and old captions; packs used within the last hour stay."""
    from datetime import UTC, datetime, timedelta

    from tasks.cache.eviction import drop, drop_captions, unused

    max_age = None if unused_days is None else timedelta(days=unused_days)
    max_bytes = None if max_size is None else _bytes(max_size)
    index, store = _open(settings)
    packs = index.packs()
    chosen = unused(packs, max_age=max_age, max_bytes=max_bytes, now=index.now())
    if not dry_run:
        drop(index, store, [pack.key for pack in chosen])
    captions = 0
    if max_age is not None:
        captions = drop_captions(store, datetime.now(UTC) - max_age, dry_run=dry_run)
    freed = sum(pack.size for pack in chosen)
    left = sum(pack.size for pack in packs) - freed
    values = {"removed": len(chosen), "freed_bytes": freed, "left_bytes": left}
    _show({**values, "captions_removed": captions}, json=json)


@commands.command(**about("cache verify", docs="guides/failures.md"))
@command
def verify(settings: "Settings", json: Json = False) -> int:
    """Read every pack and remove damaged ones.

    Jobs encode them again when needed. Exits with 1 if a pack was damaged.
    """
    from tasks.cache.eviction import drop_damaged

    index, store = _open(settings)
    packs = index.packs()
    damaged = drop_damaged(index, store, [pack.key for pack in packs])
    _show({"packs": len(packs), "damaged": damaged}, json=json)
    return 1 if damaged else 0


def _open(settings: "Settings") -> "tuple[PackIndex, Store]":
    """Return the cache's index, complete with packs that only the store knows, and the store."""
    from tasks.cache.index import PackIndex
    from tasks.state.connection import connect
    from tasks.store import Store
    from worker.cli.client import client_of

    store = Store(settings.resolved_store_url)
    connection = connect(client_of(settings).broker_url)
    index = PackIndex(connection, settings.job_ttl, settings.visibility_timeout)
    index.rebuild(store)
    return index, store


def _bytes(text: str) -> int:
    """Parse ``--max-size``.

    Raises:
        UsageError: It is not a size.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from tasks.errors import UsageError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, OverflowError) as error:
        message = f"--max-size: {text!r} is not a size; write it like 500GB or 2TiB"
        raise UsageError(message) from error


def _show(values: dict[str, Any], *, json: bool) -> None:
    from pydantic import ByteSize

    from worker.cli.reports.output import print_json, stdout

    if json:
        print_json(values)
        return
    for name, value in values.items():
        text = ByteSize(value).human_readable() if name.endswith("_bytes") else value
        stdout.print(f"{name.removesuffix('_bytes')}: {text}")
