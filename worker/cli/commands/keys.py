"""Commands on access: create, list and revoke API keys, and read the audit log."""

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.command import Json, command
from worker.cli.help import ACCESS, Group, about

if TYPE_CHECKING:
    from datetime import timedelta

    from tasks.access.api_keys import Scope
    from tasks.access.key_changes import KeyChanges
    from tasks.settings.settings import Settings

commands = typer.Typer(
    cls=Group, help="Manage API keys of the console and its API.", no_args_is_help=True
)

audit_commands = typer.Typer(cls=Group)

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.", show_default=False)]


@commands.command(
    **about(
        "keys create shop --tenant acme",
        "keys create alice --operator --expires 90d",
        docs="api.md",
    )
)
@command
def create(
    settings: "Settings",
    name: KeyName,
    tenant: Annotated[
        str | None, typer.Option(help="The key sees and submits the jobs of this tenant only.")
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="The key sees the jobs of all tenants.")
    ] = False,
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The key expires after this time, such as 90d or 12h."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            help="What the key may be used for: jobs:read, jobs:write, uploads, files, webhooks, "
            "and admin for operators. May be repeated. Default: everything.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Create a key and print it once; only its digest is stored."""
    from tasks.access.key_changes import KeyChanges
    from tasks.errors import UsageError
    from tasks.state.audit import command_line_actor
    from worker.cli.reports.output import print_json, stdout

    if (tenant is None) != operator:
        raise UsageError("give either --tenant or --operator")
    changes = KeyChanges(settings.api_keys_file)
    api_keys = changes.api_keys(command_line_actor())
    expires_in = None if expires is None else _time(expires)
    key = api_keys.create(name, tenant, expires_in=expires_in, scopes=_scopes(scope))
    _forward(settings, changes)
    if json:
        entry = next(entry for entry in api_keys.entries() if entry.name == name)
        print_json({**entry.model_dump(mode="json", exclude={"sha256"}), "key": key})
    else:
        stdout.print(key, soft_wrap=True)


@commands.command("list", **about("keys list", docs="api.md"))
@command
def list_keys(settings: "Settings", json: Json = False) -> None:
    """List the keys, the oldest first."""
    from tasks.access.api_keys import ApiKeys
    from worker.cli.reports.fleet_tables import key_table
    from worker.cli.reports.output import print_json, print_table, print_warning

    entries = ApiKeys(settings.api_keys_file).entries()
    if json:
        print_json([entry.model_dump(mode="json", exclude={"sha256"}) for entry in entries])
        return
    print_table(key_table(entries), "there is no API key; 'training-worker keys create' makes one")
    for entry in entries:
        if entry.caller.expires_soon and not entry.is_expired:
            print_warning(f"key {entry.name} expires at {entry.expires:%Y-%m-%d %H:%M} UTC")


@commands.command(**about("keys revoke shop", docs="api.md"))
@command
def revoke(settings: "Settings", name: KeyName, json: Json = False) -> None:
    """Revoke a key; it stops working at once."""
    from tasks.access.key_changes import KeyChanges
    from tasks.state.audit import command_line_actor
    from worker.cli.reports.output import print_json, stdout

    changes = KeyChanges(settings.api_keys_file)
    changes.api_keys(command_line_actor()).revoke(name)
    _forward(settings, changes)
    if json:
        print_json({"revoked": name})
    else:
        stdout.print(f"key {name} is revoked")


@audit_commands.command(
    **about(
        "audit --action job.cancel",
        "audit --actor alice --limit 10",
        purpose=ACCESS,
        docs="security.md",
    )
)
@command
def audit(
    settings: "Settings",
    actor: Annotated[
        str | None, typer.Option(help="Text in the actor, such as a key's name or a host's.")
    ] = None,
    action: Annotated[
        str | None, typer.Option(help="An action or its group, such as job.cancel or job.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="The job's id.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant that it concerns.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=50_000, help="Number of entries.")] = 50,
    json: Json = False,
) -> None:
    """List who did what: the audit log, the newest entry first."""
    from tasks.access.key_changes import KeyChanges
    from worker.cli.client import client_of
    from worker.cli.reports.fleet_tables import audit_table
    from worker.cli.reports.output import print_json, print_table

    client = client_of(settings)
    KeyChanges(settings.api_keys_file).forward(client.audit)
    entries = client.audit.entries(
        limit=limit, actor=actor, action=action, subject=job, tenant=tenant
    )
    if json:
        print_json([entry.model_dump(mode="json") for entry in entries])
    else:
        print_table(audit_table(entries), "no entry of the audit log matches")


def _time(text: str) -> "timedelta":
    """Parse ``--expires``.

    Raises:
        UsageError: It is not a number and a unit.
    """
    from datetime import timedelta

    from tasks.errors import UsageError

    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text)
    if match is None:
        raise UsageError("--expires: use a number and m, h, d or w, such as 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _scopes(names: list[str] | None) -> "list[Scope] | None":
    """Parse ``--scope``.

    Raises:
        UsageError: A name is unknown.
    """
    from tasks.access.api_keys import Scope
    from tasks.errors import UsageError

    known = [scope.value for scope in Scope]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UsageError(f"--scope: no scope {', '.join(unknown)}; scopes: {', '.join(known)}")
    return [Scope(name) for name in names] if names else None


def _forward(settings: "Settings", changes: "KeyChanges") -> None:
    """Take changes to the audit log; without a broker, a console or the next command does."""
    from redis import RedisError

    from tasks.errors import NoBrokerError
    from tasks.state.audit import AuditLog
    from tasks.state.connection import connect
    from worker.local.embedded_broker import broker_url

    with suppress(NoBrokerError, RedisError):
        changes.forward(AuditLog(connect(broker_url(settings)), settings.audit_retention))
