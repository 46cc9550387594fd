"""The command line: names, options and help. What a command does is in ``worker/commands``.

Imports next to nothing, so that ``--help`` answers at once; a command's module is imported when
the command runs.
"""

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

cli = typer.Typer(
    name="training-worker",
    help="Fine-tune image models on a fleet of GPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich's help alone takes longer to import than all the rest
)

JobFile = Annotated[Path, typer.Argument(help="The job, as YAML or JSON.", show_default=False)]
JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]
ReadyFile = Annotated[Path | None, typer.Option(help="A file to make once ready.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _run(command: str, **options: Any) -> None:
    module = importlib.import_module(f"worker.cli.commands.{command}")
    session = importlib.import_module("worker.cli.session")
    raise typer.Exit(session.run(module.run, **options))


@cli.command()
def up(ready_file: ReadyFile = None) -> None:
    """Start a fleet on this machine and keep it running.

    A private broker (unless TRAINING_BROKER_URL is set), a CPU worker, one worker for each GPU
    or an emulated one, Flower, the web console, and metrics where TRAINING_METRICS_PORT is set.
    """
    _run("up", ready_file=ready_file)


@cli.command()
def demo(
    home: Annotated[
        Path | None, typer.Option(help="Where the demo keeps its files.", show_default=False)
    ] = None,
) -> None:
    """Run a whole FLUX LoRA job with a tiny model on an emulated fleet."""
    _run("demo", home=home)


@cli.command()
def submit(
    job: JobFile,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything from here and send nothing.")
    ] = False,
    require_worker: Annotated[
        bool, typer.Option("--require-worker", help="Refuse unless a live worker can take it.")
    ] = False,
    json: Json = False,
) -> None:
    """Submit a job."""
    _run("submit", path=job, watch=watch, dry_run=dry_run, require_worker=require_worker, json=json)


@cli.command()
def watch(job: JobId, json: Json = False) -> None:
    """Follow a job to its end: stage, progress, loss, speed, time left."""
    _run("watch", job_id=job, json=json)


@cli.command()
def status(job: JobId, json: Json = False) -> None:
    """Show where a job is, what it waits for, and the time left."""
    _run("status", job_id=job, json=json)


@cli.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many jobs.")] = 20, json: Json = False
) -> None:
    """List the newest jobs."""
    _run("list", limit=limit, json=json)


@cli.command()
def cancel(
    job: JobId,
    save: Annotated[
        bool, typer.Option("--save", help="Save a checkpoint first, and publish what there is.")
    ] = False,
    json: Json = False,
) -> None:
    """Cancel a job, waiting or running."""
    _run("cancel", job_id=job, save=save, json=json)


@cli.command()
def pause(job: JobId, json: Json = False) -> None:
    """Keep a job from going on; a running one saves a checkpoint and frees its GPU."""
    _run("pause", action="pause", job_id=job, json=json)


@cli.command()
def resume(job: JobId, json: Json = False) -> None:
    """Let a paused job go on from its checkpoint."""
    _run("pause", action="resume", job_id=job, json=json)


@cli.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Show this one's values.")] = None,
    json: Json = False,
) -> None:
    """List the presets, or show one."""
    _run("presets", name=name, json=json)


@cli.command()
def options(
    training_type: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="Show this training type's only.")
    ] = None,
    form: Annotated[
        Literal["table", "markdown", "json"], typer.Option("--format", help="How to show them.")
    ] = "table",
    json: Json = False,
) -> None:
    """List every option of the training types, with type, default and meaning."""
    _run("options", training_type=training_type, form="json" if json else form)


@cli.command()
def contract(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to put them.", show_default=False)
    ],
) -> None:
    """Write what backends and front ends of others need: names, JSON schemas, TypeScript."""
    _run("contract", folder=folder)


@cli.command()
def route(job: JobFile, json: Json = False) -> None:
    """Show the GPU memory class a job goes to, why, and how long it may take there."""
    _run("route", path=job, json=json)


@cli.command()
def durations(json: Json = False) -> None:
    """Show what finished runs have taught: seconds a step, and waits by queue."""
    _run("times", json=json)


@cli.command()
def gpus(
    fleet: Annotated[
        bool, typer.Option("--fleet", help="Those of all live workers, with any quarantine.")
    ] = False,
    json: Json = False,
) -> None:
    """List this machine's GPUs and their memory classes, or those of the whole fleet."""
    _run("gpus", fleet=fleet, json=json)


@cli.command()
def engines(json: Json = False) -> None:
    """Show this machine's engines: what is installed, what each can do, what is repaired."""
    _run("engines", json=json)


@cli.command()
def calibrate(
    training_type: Annotated[
        Literal["FLUX_LORA", "SDXL_LORA"], typer.Option("--type", help="What is trained.")
    ] = "FLUX_LORA",
    model: Annotated[
        str | None, typer.Option(help="The base model: a folder, a file or a Hub id.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="UUID of the GPU. Unset: this machine's largest.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The file; one that is there keeps what is not measured anew.")
    ] = Path("calibration.json"),
    json: Json = False,
) -> None:
    """Measure what training takes of a GPU, for TRAINING_CALIBRATION."""
    _run("calibrate", training_type=training_type, model=model, gpu=gpu, output=output, json=json)


@cli.command()
def simulate(
    fleet: Annotated[
        Path,
        typer.Argument(help="The GPUs: CSV with the columns class, count.", show_default=False),
    ],
    workload: Annotated[
        Path | None,
        typer.Option(help="CSV: arrival_s, duration_s, needed_gib, tenant. Unset: one is drawn."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many are drawn.")] = 2000,
    load: Annotated[
        float, typer.Option(min=0.01, help="Their work over what the fleet can do.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(help="The same draws the same.")] = 1,
    save: Annotated[Path | None, typer.Option(help="Write the workload here, as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the waits into this PNG.")] = None,
    json: Json = False,
) -> None:
    """Run a workload on a fleet that is not there, under our queues and others."""
    _run(
        "simulate",
        fleet_path=fleet,
        workload_path=workload,
        jobs=jobs,
        load=load,
        seed=seed,
        save=save,
        plot=plot,
        json=json,
    )


@cli.command()
def worker(
    queues: Annotated[
        str | None,
        typer.Option(help="Queues to serve, first served first, with commas between."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="UUID of the one GPU to use, or auto where there is only one; decides the queues."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Serve the GPU's own class only.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="The worker's name.")] = None,
    exit_when_idle: Annotated[
        float | None,
        typer.Option(
            min=1, metavar="SECONDS", help="End where there was nothing to do for so long."
        ),
    ] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Run one worker process: of one GPU, or of the CPU queue."""
    _run(
        "worker",
        queues=queues,
        gpu=gpu,
        strict=strict,
        name=name,
        exit_when_idle=exit_when_idle,
        ready_file=ready_file,
    )


@cli.command()
def health(
    ready_file: Annotated[
        Path, typer.Argument(help="The worker's --ready-file.", show_default=False)
    ],
) -> None:
    """End with 0 where a worker of this machine is ready and well, broker or no broker."""
    _run("health", ready_file=ready_file)


@cli.command()
def doctor(json: Json = False) -> None:
    """Look at broker, store, clock, GPUs, workers and leases, and say what to mend."""
    _run("doctor", json=json)


@cli.command()
def drain(
    workers: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORKER...", help="Their names.", show_default=False),
    ] = None,
    all_workers: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    wait: Annotated[bool, typer.Option(help="Return when they have ended.")] = True,
    json: Json = False,
) -> None:
    """Let workers hand their jobs back, from a checkpoint, and end."""
    _run("drain", workers=tuple(workers or ()), all_workers=all_workers, wait=wait, json=json)


_cache = typer.Typer(help="Look after the fleet's cache of encoder outputs.", no_args_is_help=True)
cli.add_typer(_cache, name="cache")


@_cache.command("list")
def cache_ls(json: Json = False) -> None:
    """Show what the cache holds: packs, size, last use."""
    _run("cache", action="ls", json=json)


@_cache.command("prune")
def cache_gc(
    unused_days: Annotated[
        float | None, typer.Option(min=0, help="Remove what no job has used for so many days.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(help="Remove what was used longest ago until it is no larger, like 500GB."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    json: Json = False,
) -> None:
    """Remove packs that nobody uses; those of the last hour stay."""
    _run(
        "cache",
        action="gc",
        unused_days=unused_days,
        max_size=max_size,
        dry_run=dry_run,
        json=json,
    )


@_cache.command("verify")
def cache_verify(json: Json = False) -> None:
    """Read every pack and remove the damaged ones; they are made anew when a job needs them."""
    _run("cache", action="verify", json=json)


_dead = typer.Typer(
    help="Look after jobs that failed through no fault of their own.", no_args_is_help=True
)
cli.add_typer(_dead, name="dead-letter")

DeadJobs = Annotated[
    list[str] | None, typer.Argument(metavar="JOB...", help="The jobs' ids.", show_default=False)
]
AllDead = Annotated[bool, typer.Option("--all", help="All of them.")]


@_dead.command("list")
def dead_ls(json: Json = False) -> None:
    """List them, the oldest end first; with --json, each with its history."""
    _run("dead", action="ls", json=json)


@_dead.command("replay")
def dead_replay(jobs: DeadJobs = None, all_jobs: AllDead = False, json: Json = False) -> None:
    """Let jobs go on from the stage and the checkpoint where they failed."""
    _run("dead", action="replay", job_ids=tuple(jobs or ()), all_jobs=all_jobs, json=json)


@_dead.command("discard")
def dead_drop(jobs: DeadJobs = None, all_jobs: AllDead = False, json: Json = False) -> None:
    """Take jobs off the list; what is known of them stays for its life time."""
    _run("dead", action="drop", job_ids=tuple(jobs or ()), all_jobs=all_jobs, json=json)


@cli.command()
def tenants(json: Json = False) -> None:
    """List the tenants: what each gets, what is in flight, and what waits where."""
    _run("tenants", json=json)


@cli.command()
def metrics(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="List every metric as Markdown.")
    ] = False,
) -> None:
    """Serve the fleet's metrics for Prometheus."""
    _run("metrics", markdown=markdown)


@cli.command()
def flower() -> None:
    """Run Flower, the operators' view of workers, queues and tasks."""
    _run("flower")


@cli.command()
def console() -> None:
    """Run the web console and its HTTP API."""
    _run("console")


_keys = typer.Typer(help="Make and revoke keys of the console and its API.", no_args_is_help=True)
cli.add_typer(_keys, name="keys")

KeyName = Annotated[str, typer.Argument(help="What the key is called.", show_default=False)]


@_keys.command("create")
def keys_add(
    name: KeyName,
    tenant: Annotated[
        str | None, typer.Option(help="Whose jobs it is for: it sees and sends no others.")
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="It sees the jobs of all tenants.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a key and print it, once; only its digest is kept."""
    if (tenant is None) != operator:
        raise typer.BadParameter("give either --tenant or --operator")
    _run("keys", action="add", name=name, tenant=tenant, json=json)


@_keys.command("list")
def keys_ls(json: Json = False) -> None:
    """List the keys by name."""
    _run("keys", action="ls", name="", tenant=None, json=json)


@_keys.command("revoke")
def keys_revoke(name: KeyName, json: Json = False) -> None:
    """Make a key worthless, at once."""
    _run("keys", action="revoke", name=name, tenant=None, json=json)
