"""Workers, GPUs, engines, keys, audit and cache as tables for people and as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import ByteSize
from rich.table import Table
from rich.text import Text

from routing.policy import TrainingType
from routing.queues import DIFFUSERS, INVOKE, Engine, served_queues
from tasks.jobs.invoke import PATCHES, UNSUPPORTED_OPTIONS
from worker.cli.reports.output import FoldedTable

# The commands that show these have imported them; 'keys list' needs no Celery.
if TYPE_CHECKING:
    from tasks.access.api_keys import KeyEntry
    from tasks.cache.index import Pack
    from tasks.state.audit import AuditEntry
    from tasks.state.workers import WorkerInfo
    from worker.gpu.inventory import Gpu
    from worker.kombu_redis.unreadable import UnreadableMessage
    from worker.maintenance.finding import Finding
    from worker.supervision.engines import Installed

_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}
_ENGINES: dict[Engine, str] = {
    DIFFUSERS: "this package's trainer, on torch, diffusers, peft and transformers",
    INVOKE: "invoke-training's trainer, in a separate interpreter",
}


def findings_table(findings: "Sequence[Finding]") -> Table:
    """Show what ``doctor`` found, one check per row."""
    table = FoldedTable("", "check", "found", "what to do")
    for finding in findings:
        level = Text(finding.level, _STYLES[finding.level])
        table.add_row(level, finding.subject, finding.message, finding.remedy)
    return table


def gpu_document(gpu: "Gpu") -> dict[str, object]:
    """Return a GPU of this machine as JSON."""
    return {
        **asdict(gpu),
        "memory_class": None if gpu.memory_class is None else str(gpu.memory_class),
        "emulated": gpu.emulated,
    }


def gpu_table(gpus: "Sequence[Gpu]") -> Table:
    """Show the GPUs of this machine."""
    table = FoldedTable("uuid", "name", "memory", "free", "bf16", "ECC", "class", "serves")
    for gpu in gpus:
        table.add_row(*_gpu_cells(gpu))
    return table


def worker_gpu_table(workers: "Mapping[str, WorkerInfo]") -> Table:
    """Show the GPUs of a fleet's workers, by the workers' names."""
    headings = ("worker", "version", "uuid", "name", "class", "serves")
    table = FoldedTable(*headings, title=_fleet_title(workers))
    for name, worker in workers.items():
        serves = (
            f"quarantined: {worker.quarantined}" if worker.quarantined else ", ".join(worker.queues)
        )
        cells = (
            name,
            worker.release or "older",
            worker.gpu_uuid or "",
            "emulated on the CPU" if worker.is_emulated else worker.gpu_name or "",
            str(worker.memory_class),
            serves,
        )
        table.add_row(*cells)
    return table


def _fleet_title(workers: "Mapping[str, WorkerInfo]") -> str:
    count = f"{len(workers)} GPU worker{'' if len(workers) == 1 else 's'}"
    releases = {worker.release for worker in workers.values()}
    return f"{count} of {len(releases)} versions" if len(releases) > 1 else count


def engine_document(
    name: Engine, engine: "Installed", applied: frozenset[str]
) -> dict[str, object]:
    """Return an engine of this machine as JSON.

    Args:
        name: The engine.
        engine: What is installed of it.
        applied: The patches of invoke-training that are applied.
    """
    document: dict[str, object] = {
        "engine": name,
        "description": _ENGINES[name],
        "usable": engine.is_usable,
        "versions": engine.versions,
        "errors": list(engine.problems),
        "remedy": engine.remedy,
        "types": list(TrainingType),
    }
    if name == INVOKE:
        document["unsupported"] = [
            {"option": limit.option, "values": limit.values, "reason": limit.reason}
            for limit in UNSUPPORTED_OPTIONS
        ]
        document["patches"] = [
            {
                "name": patch_name,
                "applied": patch_name in applied,
                "types": sorted(patch.types),
                "bug": patch.bug,
            }
            for patch_name, patch in PATCHES.items()
        ]
    return document


def engine_tables(engines: "Mapping[Engine, Installed]", applied: frozenset[str]) -> list[Table]:
    """Show the engines of this machine, and the limits and patches of invoke-training.

    Args:
        engines: What is installed of each engine.
        applied: The patches that are applied.
    """
    table = FoldedTable("engine", "usable", "versions", "types")
    for name, engine in engines.items():
        usable = "yes" if engine.is_usable else "; ".join((*engine.problems, engine.remedy))
        versions = ", ".join(f"{library} {number}" for library, number in engine.versions.items())
        table.add_row(name, usable, versions, ", ".join(TrainingType))
    limits = FoldedTable(
        "option", "values", "reason", title=f"options that {INVOKE} does not support"
    )
    for limit in UNSUPPORTED_OPTIONS:
        limits.add_row(limit.option, limit.values, limit.reason)
    patches = FoldedTable("patch", "applied", "types", "bug", title=f"patches of {INVOKE}")
    for patch_name, patch in PATCHES.items():
        state = "yes" if patch_name in applied else "no"
        cells = (patch_name, state, ", ".join(sorted(patch.types)), patch.bug)
        patches.add_row(*cells)
    return [table, limits, patches]


def key_table(entries: "Sequence[KeyEntry]") -> Table:
    """Show one API key per row."""
    table = FoldedTable("name", "for", "scopes", "created", "expires")
    for entry in entries:
        owner = "operator" if entry.tenant is None else f"tenant {entry.tenant}"
        scopes = "all" if entry.scopes is None else ", ".join(entry.scopes)
        expires = "never" if entry.expires is None else f"{entry.expires:%Y-%m-%d %H:%M}"
        style = "yellow" if entry.caller.expires_soon else ""
        end = Text(f"expired {expires}" if entry.is_expired else expires, style)
        table.add_row(entry.name, owner, scopes, f"{entry.created:%Y-%m-%d %H:%M}", end)
    return table


def audit_table(entries: "Sequence[AuditEntry]") -> Table:
    """Show one entry of the audit log per row."""
    table = FoldedTable("at", "actor", "action", "subject", "tenant", "details")
    for entry in entries:
        details = ", ".join(f"{name}={value}" for name, value in entry.details.items())
        at = f"{entry.at.astimezone():%Y-%m-%d %H:%M:%S}"
        table.add_row(at, entry.actor, entry.action, entry.subject, entry.tenant or "", details)
    return table


def cache_document(packs: "Sequence[Pack]") -> dict[str, dict[str, Any]]:
    """Return the number, size and last use of packs by their kind, as JSON."""
    count, size, used_at = Counter[str](), Counter[str](), dict[str, float]()
    for pack in packs:
        kind = PurePosixPath(pack.key).parts[1]
        count[kind] += 1
        size[kind] += pack.size
        used_at[kind] = max(pack.used_at, used_at.get(kind, 0))
    return {
        kind: {"packs": count[kind], "bytes": size[kind], "used_at": used_at[kind]}
        for kind in sorted(count)
    }


def cache_table(packs: "Sequence[Pack]") -> Table:
    """Show one kind of packs per row."""
    table = FoldedTable("kind", "packs", "size", "last used")
    for kind, packs_of_kind in cache_document(packs).items():
        used_at = (
            datetime.fromtimestamp(packs_of_kind["used_at"]).astimezone().strftime("%Y-%m-%d %H:%M")
        )
        size = ByteSize(packs_of_kind["bytes"]).human_readable()
        table.add_row(kind, str(packs_of_kind["packs"]), size, used_at)
    return table


def _gpu_cells(gpu: "Gpu") -> tuple[str, ...]:
    device = gpu.device
    if gpu.memory_class is None:
        serves, memory_class = "nothing", gpu.problem or "too small"
    else:
        serves, memory_class = ", ".join(served_queues(gpu.memory_class)), str(gpu.memory_class)
    if device is None:
        return gpu.uuid, gpu.name, "", "", "", "", memory_class, serves
    bf16 = "" if gpu.has_bfloat16 is None else "yes" if gpu.has_bfloat16 else "no"
    if bf16 == "no":
        serves = "nothing"
    ecc = "" if device.ecc is None else "on" if device.ecc else "off"
    memory = (f"{gpu.memory_mib / 1024:.1f} GiB", f"{device.free_mib / 1024:.1f} GiB")
    return gpu.uuid, gpu.name, *memory, bf16, ecc, memory_class, serves


def unreadable_table(messages: "Sequence[UnreadableMessage]") -> Table:
    """Show one unreadable message per row, without its text, which may hold signed URLs."""
    table = FoldedTable("set aside", "queue", "bytes", "reason")
    for message in messages:
        at = datetime.fromtimestamp(message.set_aside_at).astimezone()
        shown_at = at.strftime("%m-%d %H:%M:%S")
        table.add_row(shown_at, message.queue, f"{message.size:,}", message.reason)
    return table
