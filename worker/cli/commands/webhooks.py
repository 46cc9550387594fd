"""Commands on jobs' webhooks: the tenants' secrets, and deliveries."""

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.command import JobId, Json, command
from worker.cli.help import Group, about

if TYPE_CHECKING:
    from tasks.settings.settings import Settings

commands = typer.Typer(cls=Group, help="Manage the webhooks that jobs name.", no_args_is_help=True)
secret_commands = typer.Typer(
    cls=Group, help="Manage the secrets that sign a tenant's webhooks.", no_args_is_help=True
)
commands.add_typer(secret_commands, name="secret")

Tenant = Annotated[str, typer.Option(help="The owner of the jobs.")]


@commands.command("list", **about("webhooks list 3f2a8c19d0e4", docs="api.md"))
@command
def list_deliveries(settings: "Settings", job: JobId, json: Json = False) -> None:
    """List the deliveries of a job's webhook, the newest first."""
    from worker.cli.client import client_of
    from worker.cli.reports.job_tables import delivery_table
    from worker.cli.reports.output import print_json, print_table

    client = client_of(settings)
    client.state.get(job)
    log = client.webhook_deliveries.log(job)
    if json:
        print_json([delivery.model_dump(mode="json") for delivery in log])
    else:
        print_table(delivery_table(log), f"job {job} has no delivery")


@commands.command(
    **about("webhooks redeliver 3f2a8c19d0e4", "webhooks redeliver 3f2a8c19d0e4 2", docs="api.md")
)
@command
def redeliver(
    settings: "Settings",
    job: JobId,
    sequence: Annotated[
        int | None,
        typer.Argument(min=1, help="The delivery's number. Default: every exhausted one."),
    ] = None,
    json: Json = False,
) -> None:
    """Deliver a job's webhook again, now and with all retries, under the same webhook-id."""
    from tasks.state.audit import command_line_actor
    from worker.cli.client import client_of
    from worker.cli.reports.output import print_json, stdout

    sent = client_of(settings).redeliver(job, sequence, command_line_actor())
    if json:
        print_json({"job_id": job, "redelivered": sent})
    else:
        stdout.print(f"deliveries of job {job} that are due now: {len(sent)}")


@secret_commands.command(**about("webhooks secret create --tenant acme", docs="api.md"))
@command
def create(settings: "Settings", tenant: Tenant, json: Json = False) -> None:
    """Create a secret and print it once. A tenant may have two, which both sign."""
    from tasks.state.audit import command_line_actor
    from worker.cli.client import client_of
    from worker.cli.command import checked_tenant
    from worker.cli.reports.output import print_json, stdout

    client, tenant = client_of(settings), checked_tenant(tenant)
    entry, secret = client.create_webhook_secret(tenant, command_line_actor())
    if json:
        print_json({"tenant": tenant, **entry.model_dump(mode="json"), "secret": secret})
    else:
        stdout.print(secret, soft_wrap=True)


@secret_commands.command("list", **about("webhooks secret list --tenant acme", docs="api.md"))
@command
def list_secrets(settings: "Settings", tenant: Tenant, json: Json = False) -> None:
    """List a tenant's secrets, without the secrets themselves, the oldest first."""
    from worker.cli.client import client_of
    from worker.cli.reports.job_tables import webhook_secret_table
    from worker.cli.reports.output import print_json, print_table

    entries = client_of(settings).webhook_secrets.entries(tenant)
    if json:
        print_json([entry.model_dump(mode="json") for entry in entries])
    else:
        empty = "; 'training-worker webhooks secret create' makes one"
        print_table(webhook_secret_table(entries), f"tenant {tenant} has no secret{empty}")


@secret_commands.command(**about("webhooks secret revoke 1a2b3c4d --tenant acme", docs="api.md"))
@command
def revoke(
    settings: "Settings",
    secret: Annotated[str, typer.Argument(metavar="ID", help="The secret's id.")],
    tenant: Tenant,
    json: Json = False,
) -> None:
    """Revoke a secret. Without any, deliveries wait until there is one, for three days at most."""
    from tasks.state.audit import command_line_actor
    from worker.cli.client import client_of
    from worker.cli.reports.output import print_json, stdout

    client_of(settings).revoke_webhook_secret(tenant, secret, command_line_actor())
    if json:
        print_json({"tenant": tenant, "revoked": secret})
    else:
        stdout.print(f"webhook secret {secret} of tenant {tenant} is revoked")
