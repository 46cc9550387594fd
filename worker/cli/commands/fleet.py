"""Commands on workers and machines: start, check, drain and list them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.command import Json, ReadyFile, command, finite
from worker.cli.completion import worker_names
from worker.cli.help import FLEET, START, Group, about

if TYPE_CHECKING:
    from routing.queues import Engine
    from tasks.settings.settings import Settings
    from worker.gpu.inventory import Gpu

commands = typer.Typer(cls=Group)

# Time beyond TRAINING_SHUTDOWN_TIMEOUT: for the worker to receive the request, and to exit after
# its trainer has saved a checkpoint.
_DRAIN_SLACK_S = 30.0


@commands.command(**about("up", "-v up", purpose=START, docs="quickstart.md"))
@command
def up(settings: "Settings", ready_file: ReadyFile = None) -> None:
    """Start a fleet on this machine and keep it running.

    Starts an embedded broker (unless TRAINING_BROKER_URL is set), a CPU worker, one worker per GPU
    (or one that emulates a GPU on the CPU), Flower, the web console, and the metrics exporter if
    TRAINING_METRICS_PORT is set.
    """
    from worker.cli.local_runs import run_local_fleet

    run_local_fleet(settings, ready_file)


@commands.command(**about("login-link", purpose=START, docs="console.md"))
@command
def login_link(settings: "Settings") -> None:
    """Print a new login link to this machine's console.

    Needs a console that runs here, and the right to read its key in TRAINING_HOME/console-key.
    """
    from tasks.errors import ErrorCode, JobError
    from worker.cli.reports.output import stdout
    from worker.local.embedded_broker import broker_url
    from worker.local.login_link import new_login_link
    from worker.local.ports import console_answers

    url = broker_url(settings)
    if not console_answers(settings.console_address, settings.console_port):
        raise JobError(
            f"no console answers on {settings.console_address}:{settings.console_port}: start it "
            "with 'training-worker up', or set TRAINING_CONSOLE_PORT to its port",
            ErrorCode.INVALID_STATE,
        )
    stdout.print(new_login_link(settings, url), soft_wrap=True)


@commands.command(**about("demo", "demo --home /tmp/demo", purpose=START, docs="quickstart.md"))
@command
def demo(
    settings: "Settings",
    home: Annotated[
        Path | None,
        typer.Option(help="Folder of the demo's files. Unset: demo in TRAINING_HOME."),
    ] = None,
) -> None:
    """Run a FLUX LoRA job with a miniature model on an emulated fleet."""
    from worker.cli.local_runs import run_demo

    run_demo(settings, home)


@commands.command(
    **about("worker --gpu auto", "worker --queues cpu", purpose=FLEET, docs="guides/ten-hosts.md")
)
@command
def worker(
    settings: "Settings",
    queues: Annotated[
        str | None,
        typer.Option(help="Queues to serve, separated by commas; the first is served first."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="UUID of the GPU to use, or auto if there is one only; it decides the queues."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Serve the GPU's own memory class only.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="The worker's name.")] = None,
    exit_when_idle: Annotated[
        float | None,
        typer.Option(
            min=1, metavar="SECONDS", help="Exit after this long without work.", callback=finite
        ),
    ] = None,
    ready_file: ReadyFile = None,
) -> int:
    """Run one worker process: of one GPU, or of the CPU queue."""
    from routing.queues import CPU_QUEUE, SUBMIT_QUEUE, served_queues
    from tasks.extras import require
    from worker.gpu.inventory import choose_gpu
    from worker.local.embedded_broker import broker_url
    from worker.worker import run_worker

    url = broker_url(settings)
    card = choose_gpu(gpu, settings.gpus, settings.cuda_visible_devices) if gpu else None
    memory_class = None if card is None else card.memory_class
    engines: tuple[Engine, ...] = ()
    possible: tuple[str, ...] = (CPU_QUEUE, SUBMIT_QUEUE)
    if card is not None and memory_class is not None:
        engines = _usable_engines(settings, card)
        possible = served_queues(memory_class, engines=engines)
    if queues is not None:
        served = _checked_queues(queues, possible, card)
    elif strict and memory_class is not None:
        served = served_queues(memory_class, strict=True, engines=engines)
    else:
        served = possible
    if card is not None:
        require("torch")
    label = name or (f"gpu-{card.memory_class}-{card.uuid[-8:]}" if card else "cpu")
    return run_worker(
        settings,
        url,
        name=label,
        queues=served,
        gpu=card,
        engines=engines,
        ready_file=ready_file,
        exit_when_idle_s=exit_when_idle,
    )


@commands.command(**about("health /run/worker/ready", purpose=FLEET, docs="guides/kubernetes.md"))
@command
def health(
    settings: "Settings",
    ready_file: Annotated[
        Path,
        typer.Argument(metavar="READY_FILE", help="The worker's --ready-file.", show_default=False),
    ],
) -> None:
    """Check that a worker is ready and healthy.

    Exits with 7 if not. For liveness probes on the worker's machine: an unavailable broker does
    not make a worker unhealthy.
    """
    from worker.lifecycle.health import check_health

    check_health(ready_file, settings.visibility_timeout)


@commands.command(
    **about(
        "drain gpu-40gb-0@host1", "drain --all --no-wait", purpose=FLEET, docs="guides/upgrade.md"
    )
)
@command
def drain(
    settings: "Settings",
    workers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORKER",
            help="The workers' names.",
            show_default=False,
            autocompletion=worker_names,
        ),
    ] = None,
    all_workers: Annotated[bool, typer.Option("--all", help="Drain all live workers.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until the workers have stopped.")] = True,
    json: Json = False,
) -> None:
    """Stop workers; their jobs resume elsewhere from a checkpoint."""
    import time

    from tasks.errors import ErrorCode, JobError, UsageError
    from tasks.state.audit import command_line_actor
    from worker.cli.client import client_of
    from worker.cli.reports.output import print_json, stdout

    if all_workers == bool(workers):
        raise UsageError("name the workers to drain, or give --all")
    client = client_of(settings)
    live = sorted(client.live_workers())
    unknown = sorted(set(workers or ()) - set(live))
    if unknown:
        known = ", ".join(live) or "none"
        raise UsageError(f"there is no live worker {', '.join(unknown)}; live workers: {known}")
    names = workers or live
    client.drain(names, command_line_actor())
    deadline = time.monotonic() + settings.shutdown_timeout.total_seconds() + _DRAIN_SLACK_S
    running = set(names)
    while wait and running and time.monotonic() < deadline:
        time.sleep(0.2)
        running &= client.live_workers().keys()
    for name in names:
        state = "draining" if not wait else "running" if name in running else "stopped"
        if json:
            print_json({"worker": name, "state": state})
        else:
            stdout.print(f"{name}: {state}")
    if wait and running:
        message = f"workers still running: {', '.join(sorted(running))}"
        raise JobError(message, ErrorCode.INVALID_STATE)


@commands.command(**about("doctor", "doctor --json", purpose=START, docs="guides/failures.md"))
@command
def doctor(settings: "Settings", json: Json = False) -> int:
    """Check broker, store, clock, GPUs, workers and leases.

    Reports problems and fixes. Exits with 1 if jobs could be lost or cannot run.
    """
    from dataclasses import asdict

    from worker.cli.reports.fleet_tables import findings_table
    from worker.cli.reports.output import print_json, stdout
    from worker.maintenance.doctor import check_all

    findings = check_all(settings)
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        stdout.print(findings_table(findings))
    return int(any(finding.level == "error" for finding in findings))


@commands.command(**about("gpus", "gpus --fleet", purpose=FLEET, docs="guides/ten-hosts.md"))
@command
def gpus(
    settings: "Settings",
    fleet: Annotated[
        bool,
        typer.Option("--fleet", help="List the GPUs of all live workers, with any quarantine."),
    ] = False,
    json: Json = False,
) -> None:
    """List the GPUs of this machine, or of the fleet."""
    from worker.cli.client import client_of
    from worker.cli.reports.fleet_tables import gpu_document, gpu_table, worker_gpu_table
    from worker.cli.reports.output import print_json, print_table, stdout
    from worker.gpu.inventory import find_gpus

    if fleet:
        live = client_of(settings).live_workers()
        workers = {name: worker for name, worker in live.items() if worker.gpu_uuid is not None}
        if json:
            print_json(
                [
                    {"worker": n, **it.model_dump(mode="json"), "emulated": it.is_emulated}
                    for n, it in workers.items()
                ]
            )
        else:
            print_table(worker_gpu_table(workers), "no live worker has a GPU")
        return
    found = find_gpus(settings.gpus, settings.cuda_visible_devices)
    if json:
        print_json([gpu_document(gpu) for gpu in found])
    elif not found:
        stdout.print("this machine has no NVIDIA GPU; 'up' emulates one on the CPU")
    else:
        stdout.print(gpu_table(found))


def _usable_engines(settings: "Settings", gpu: "Gpu") -> "tuple[Engine, ...]":
    """Return the engines that jobs can be trained with on this machine and GPU."""
    import logging
    from dataclasses import replace

    from routing.queues import DIFFUSERS, INVOKE
    from worker.gpu.inventory import why_untrainable
    from worker.supervision.engines import find_invoke, invoke_python

    python = invoke_python(settings)
    if python is None:
        return (DIFFUSERS,)
    found = find_invoke(python)
    unsupported = why_untrainable(gpu, str(python)) if found.is_usable else None
    if unsupported is not None:
        found = replace(found, problems=(f"GPU {gpu.uuid}: {unsupported}",))
    for problem in found.problems:
        logging.getLogger(__name__).warning(
            "this worker takes no jobs of engine %s: %s; %s", INVOKE, problem, found.remedy
        )
    return (DIFFUSERS, INVOKE) if found.is_usable else (DIFFUSERS,)


def _checked_queues(queues: str, possible: tuple[str, ...], gpu: "Gpu | None") -> tuple[str, ...]:
    """Parse ``--queues``.

    Raises:
        UsageError: The worker cannot serve one of them.
    """
    from tasks.errors import UsageError

    served = tuple(queue.strip() for queue in queues.split(","))
    unserved = [queue for queue in served if queue not in possible]
    if unserved:
        names, known = " and ".join(map(repr, unserved)), ", ".join(possible)
        subject = f"GPU {gpu.uuid}" if gpu else "a worker without --gpu"
        raise UsageError(f"--queues: {subject} cannot serve {names}, only {known}")
    return served
