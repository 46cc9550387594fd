"""Commands on tenants: list their shares, jobs, usage and quotas, and change their quotas."""

import math
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.command import Json, Quiet, Verbose, command
from worker.cli.help import Group, about

if TYPE_CHECKING:
    from rich.table import Table

    from tasks.client import Client
    from tasks.settings.settings import Settings

commands = typer.Typer(
    cls=Group,
    help="List tenants with their usage and quotas; change quotas.",
    epilog=about("tenants", "tenants --month 2026-10", docs="guides/tenants.md")["epilog"],
    invoke_without_command=True,
)

Tenant = Annotated[
    str,
    typer.Argument(
        metavar="TENANT", help="The tenant; * is every one without its own.", show_default=False
    ),
]
_NAME = re.compile(r"\*|[\w.-]{1,100}", re.ASCII)


def _amount(text: str) -> float | None:
    """Return a quota on the command line; None for ``none``.

    Raises:
        typer.BadParameter: It is no number above 0.
    """
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"{text} is not a number above 0 or none")
    return value


@commands.callback()
def tenants(
    context: typer.Context,
    month: Annotated[
        str | None, typer.Option(help="The month of usage, such as 2026-11. Unset: this one.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """List the tenants: shares, jobs, usage, quotas; or change quotas."""
    if context.invoked_subcommand is None:
        _list(month=month, json=json, verbose=verbose, quiet=quiet)


@command
def _list(settings: "Settings", month: str | None, json: bool) -> None:
    from tasks.errors import UsageError
    from tasks.state.tenants.usage import MONTH
    from worker.cli.client import client_of
    from worker.cli.reports.output import print_json, print_table

    if month is not None and not MONTH.fullmatch(month):
        raise UsageError(f"--month: {month} is not a month such as 2026-11")
    client = client_of(settings)
    rows = tenant_rows(client, month or client.usage.this_month())
    if json:
        print_json(rows)
    else:
        empty = "no tenant has a share, a job, a quota or usage yet; see TRAINING_TENANT_SHARES"
        print_table(tenant_table(rows), empty)


@commands.command(
    "set",
    **about(
        "tenants set acme --gpu-hours 100 --hold",
        'tenants set "*" --max-waiting 50',
        docs="guides/tenants.md",
    ),
)
@command
def set_quotas(
    settings: "Settings",
    tenant: Tenant,
    gpu_hours: Annotated[
        str | None, typer.Option(help="GPU hours a month, of all classes; or none.")
    ] = None,
    money: Annotated[
        str | None,
        typer.Option(help="Cost a month, in the currency of TRAINING_GPU_PRICES; or none."),
    ] = None,
    max_waiting: Annotated[
        str | None, typer.Option(help="Jobs that wait at a time; or none.")
    ] = None,
    hold: Annotated[
        bool | None,
        typer.Option(
            "--hold/--refuse",
            help="Whether jobs wait for the next month, or are refused, once a quota is used up.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Change a tenant's quotas; those that are not named stay.

    A used-up quota of a month also holds the jobs that wait. It never stops one that runs.
    """
    from tasks.errors import UsageError
    from tasks.state.audit import command_line_actor
    from tasks.state.tenants.quotas import MAX_WAITING
    from worker.cli.client import client_of

    if not _NAME.fullmatch(tenant):
        raise UsageError(f"{tenant} is no tenant's name")
    given = {"gpu_hours": gpu_hours, "money": money, "max_waiting": max_waiting}
    changes: dict[str, float | bool | None] = {
        name: _amount(text) for name, text in given.items() if text is not None
    }
    waiting = changes.get("max_waiting")
    if waiting is not None:
        if waiting % 1 or waiting > MAX_WAITING:
            raise UsageError(f"--max-waiting is not a whole number up to {MAX_WAITING:,}")
        changes["max_waiting"] = int(waiting)
    if hold is not None:
        changes["hold"] = hold
    if not changes:
        raise UsageError("name a quota to change; see 'training-worker tenants set --help'")
    client = client_of(settings)
    client.change_quotas(tenant, changes, command_line_actor())
    _show_quota(client, tenant, json)


@commands.command("unset", **about("tenants unset acme", docs="guides/tenants.md"))
@command
def remove_quotas(settings: "Settings", tenant: Tenant, json: Json = False) -> None:
    """Remove a tenant's own quotas; those of * count for it then."""
    from tasks.state.audit import command_line_actor
    from worker.cli.client import client_of

    client = client_of(settings)
    client.remove_quotas(tenant, command_line_actor())
    _show_quota(client, tenant, json)


def tenant_rows(client: "Client", month: str) -> list[dict[str, Any]]:
    """Return every tenant that has a share, jobs, quotas or usage in a month, by name."""
    from routing.fair_share import OTHERS, share_of
    from tasks.state.tenants.usage import Usage

    queues, quotas = client.tenant_queues, client.quotas.all()
    shares, in_flight, waiting = queues.shares(), queues.in_flight(), queues.waiting()
    used = {usage.tenant: usage for usage in client.usage.all(month)}
    waiting_names = {name for counts in waiting.values() for name in counts}
    names = {*shares, *in_flight, *waiting_names, *quotas, *used} - {OTHERS}
    rows: list[dict[str, Any]] = []
    for name in sorted(names):
        share, quota = share_of(name, shares), quotas.get(name) or quotas.get(OTHERS)
        usage = used.get(name) or Usage(tenant=name, month=month)
        rows.append(
            {
                "tenant": name,
                "weight": share.weight,
                "limit": share.limit,
                "in_flight": in_flight[name],
                "waiting": {q: counts[name] for q, counts in waiting.items() if name in counts},
                "usage": usage.model_dump(mode="json", exclude={"tenant"}),
                "quotas": quota and quota.model_dump(mode="json"),
            }
        )
    return rows


def tenant_table(rows: list[dict[str, Any]]) -> "Table":
    """Show one tenant per row."""
    from worker.cli.reports.output import FoldedTable

    headings = ("tenant", "share", "in flight", "waiting", "GPU hours", "cost", "jobs", "failed")
    table = FoldedTable(*headings, "quotas")
    for row in rows:
        usage, waiting, limit = row["usage"], row["waiting"], row["limit"]
        hours = sum(usage["gpu_seconds"].values()) / 3600
        table.add_row(
            row["tenant"],
            f"{row['weight']:g}" + (f", at most {limit}" if limit else ""),
            str(row["in_flight"]),
            ", ".join(f"{count} for {queue}" for queue, count in waiting.items()),
            f"{hours:.2f}",
            f"{usage['cost']:.2f} {usage['currency'] or ''}".strip() if usage["cost"] else "",
            str(usage["submitted"]),
            str(usage["failed"]),
            _quota_text(row["quotas"]),
        )
    return table


def _quota_text(quota: dict[str, Any] | None) -> str:
    if not quota:
        return ""
    names = {"gpu_hours": "GPU hours", "money": "money", "max_waiting": "waiting"}
    parts = [f"{quota[name]:g} {words}" for name, words in names.items() if quota[name]]
    return ", ".join(parts) + ("; then hold" if quota["hold"] else "")


def _show_quota(client: "Client", tenant: str, json: bool) -> None:
    from worker.cli.reports.output import print_json, stdout

    quota = client.quotas.of(tenant).model_dump(mode="json")
    if json:
        print_json({"tenant": tenant, "quotas": quota})
    else:
        stdout.print(f"{tenant}: {_quota_text(quota) or 'no quotas'}")
