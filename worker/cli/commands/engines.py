"""``training-worker engines``."""

from rich.markup import escape
from rich.table import Table

from routing.engines import DIFFUSERS, INVOKE, Engine
from routing.requirements import TrainingType
from tasks.jobs.invoke_limits import LIMITS
from tasks.jobs.invoke_patches import REPAIRS, parse_repairs
from tasks.settings.settings import Settings
from worker.cli.output import print_json, stdout
from worker.supervision.engines import Installed, find_engines

_WHAT: dict[Engine, str] = {
    DIFFUSERS: "this package's own recipes, on torch, diffusers, peft and transformers",
    INVOKE: "invoke-training's own loop, in an interpreter of its own",
}


def run(settings: Settings, *, json: bool) -> None:
    """Show what is there of each engine on this machine, and what each can do."""
    found = find_engines(settings)
    made = parse_repairs(settings.invoke_patches)
    if json:
        print_json([_document(name, it, made) for name, it in found.items()])
        return
    table = Table("engine", "here", "versions", "types")
    for name, it in found.items():
        here = "yes" if it.is_usable else "; ".join((*it.problems, it.remedy))
        versions = ", ".join(f"{library} {number}" for library, number in it.versions.items())
        table.add_row(*map(escape, (name, here, versions, ", ".join(_types()))))
    stdout.print(table)
    refused = Table("option", "values", "why", title=f"engine {INVOKE} refuses")
    for limit in LIMITS:
        refused.add_row(*map(escape, (limit.option, limit.values, limit.reason)))
    stdout.print(refused)
    repairs = Table("repair", "made", "types", "the fault", title=f"engine {INVOKE} is repaired")
    for repair, its in REPAIRS.items():
        cells = (
            repair,
            "yes" if repair in made else "no",
            ", ".join(sorted(its.types)),
            its.problem,
        )
        repairs.add_row(*map(escape, cells))
    stdout.print(repairs)


def _document(name: Engine, it: Installed, made: frozenset[str]) -> dict[str, object]:
    document: dict[str, object] = {
        "engine": name,
        "what": _WHAT[name],
        "usable": it.is_usable,
        "versions": it.versions,
        "errors": list(it.problems),
        "remedy": it.remedy,
        "types": _types(),
    }
    if name == INVOKE:
        document["refuses"] = [
            {"option": limit.option, "values": limit.values, "reason": limit.reason}
            for limit in LIMITS
        ]
        document["repairs"] = [
            {
                "name": repair,
                "made": repair in made,
                "types": sorted(its.types),
                "problem": its.problem,
            }
            for repair, its in REPAIRS.items()
        ]
    return document


def _types() -> list[str]:
    """Both train all types there are."""
    return list(TrainingType)
