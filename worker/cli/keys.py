"""Commands on access: create, list and revoke API keys, and read the audit log."""

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.command import Json, command

if TYPE_CHECKING:
    from tasks.settings.settings import Settings

commands = typer.Typer(help="Manage API keys of the console and its API.", no_args_is_help=True)

audit_commands = typer.Typer()

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.", show_default=False)]


@commands.command()
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
    json: Json = False,
) -> None:
    """Create a key and print it once; only its digest is stored."""
    from tasks.api_keys import ApiKeys
    from tasks.errors import UsageError
    from worker.cli.output import print_json, stdout

    if (tenant is None) != operator:
        raise UsageError("give either --tenant or --operator")
    key = ApiKeys(settings.api_keys_file).create(name, tenant)
    if json:
        print_json({"name": name, "tenant": tenant, "key": key})
    else:
        stdout.print(key, soft_wrap=True)


@commands.command("list")
@command
def list_keys(settings: "Settings", json: Json = False) -> None:
    """List the keys, the oldest first."""
    from tasks.api_keys import ApiKeys
    from worker.cli.fleet_tables import key_table
    from worker.cli.output import print_json, stdout

    entries = ApiKeys(settings.api_keys_file).entries()
    if json:
        print_json([entry.model_dump(mode="json", exclude={"sha256"}) for entry in entries])
    else:
        stdout.print(key_table(entries))


@commands.command()
@command
def revoke(settings: "Settings", name: KeyName, json: Json = False) -> None:
    """Revoke a key; it stops working at once."""
    from tasks.api_keys import ApiKeys
    from worker.cli.output import print_json, stdout

    ApiKeys(settings.api_keys_file).revoke(name)
    if json:
        print_json({"revoked": name})
    else:
        stdout.print(f"key {name} is revoked")


@audit_commands.command()
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
    from worker.cli.client import client_of
    from worker.cli.fleet_tables import audit_table
    from worker.cli.output import print_json, stdout

    entries = client_of(settings).audit.entries(
        limit=limit, actor=actor, action=action, subject=job, tenant=tenant
    )
    if json:
        print_json([entry.model_dump(mode="json") for entry in entries])
    else:
        stdout.print(audit_table(entries))
