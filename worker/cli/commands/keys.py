"""``training-worker keys``."""

from rich.markup import escape
from rich.table import Table

from tasks.api_keys import ApiKeys, KeyEntry
from tasks.settings.settings import Settings
from worker.cli.output import print_json, stdout


def run(settings: Settings, *, action: str, name: str, tenant: str | None, json: bool) -> None:
    """Make, list or revoke API keys."""
    api_keys = ApiKeys(settings.api_keys_file)
    if action == "add":
        key = api_keys.create(name, tenant)
        if json:
            print_json({"name": name, "tenant": tenant, "key": key})
        else:
            stdout.print(key, markup=False, soft_wrap=True)
    elif action == "revoke":
        api_keys.revoke(name)
        if json:
            print_json({"revoked": name})
        else:
            stdout.print(f"{name} is revoked", markup=False)
    elif json:
        print_json([_document(it) for it in api_keys.entries()])
    else:
        table = Table("name", "for", "made")
        for it in api_keys.entries():
            whose = "operator" if it.tenant is None else f"tenant {it.tenant}"
            table.add_row(escape(it.name), escape(whose), f"{it.created:%Y-%m-%d %H:%M}")
        stdout.print(table)


def _document(entry: KeyEntry) -> dict[str, object]:
    return entry.model_dump(mode="json", exclude={"sha256"})
