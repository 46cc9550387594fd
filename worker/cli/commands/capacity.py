"""Commands for planning: where a job runs, how long jobs take, what a fleet can do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from worker.cli.command import JobFile, Json, command, finite
from worker.cli.help import CAPACITY, JOB_FILES, Group, about

if TYPE_CHECKING:
    from tasks.settings.settings import Settings

commands = typer.Typer(cls=Group)


@commands.command(**about("route job.yaml", purpose=JOB_FILES, docs="guides/capacity.md"))
@command
def route(settings: "Settings", job: JobFile, json: Json = False) -> None:
    """Show a job's GPU memory class and the expected durations."""
    from worker.cli.job_file import load_job
    from worker.cli.reports.job_report import JobEstimate
    from worker.cli.reports.job_tables import route_table
    from worker.cli.reports.output import print_json, stdout

    parsed = load_job(job)
    chosen, estimate = parsed.route(settings.constants), JobEstimate(settings, parsed)
    if json:
        print_json({**chosen.document(), **estimate.document()})
    else:
        stdout.print(route_table(chosen))
        estimate.show()


@commands.command(**about("durations", purpose=CAPACITY, docs="guides/capacity.md"))
@command
def durations(settings: "Settings", json: Json = False) -> None:
    """Show how long finished runs took, and how long jobs waited."""
    from worker.cli.client import client_of
    from worker.cli.reports.job_tables import duration_tables, durations_document
    from worker.cli.reports.output import print_json, stdout

    history = client_of(settings).run_history.read()
    if json:
        print_json(durations_document(history))
        return
    tables = duration_tables(history)
    if not tables:
        stdout.print("no run has finished yet")
    for table in tables:
        stdout.print(table)


@commands.command(
    **about(
        "calibrate --type SDXL_LORA --output calibration.json",
        purpose=CAPACITY,
        docs="guides/capacity.md",
    )
)
@command
def calibrate(
    settings: "Settings",
    training_type: Annotated[
        Literal["FLUX_LORA", "SDXL_LORA"], typer.Option("--type", help="The training type.")
    ] = "FLUX_LORA",
    model: Annotated[
        str | None,
        typer.Option(help="The base model: a folder, a file or a Hub id. Unset: the default."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="UUID of the GPU. Unset: the largest of this machine.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(help="File to write. An existing one keeps the constants not measured now."),
    ] = Path("calibration.json"),
    json: Json = False,
) -> None:
    """Measure the GPU memory of training, for TRAINING_CALIBRATION."""
    from worker.cli.calibration import calibrate_gpu

    calibrate_gpu(settings, training_type, model=model, uuid=gpu, output=output, json=json)


@commands.command(
    **about(
        "simulate fleet.csv",
        "simulate fleet.csv --p95-wait 30",
        purpose=CAPACITY,
        docs="guides/capacity.md",
    )
)
@command
def simulate(
    settings: "Settings",
    fleet: Annotated[
        Path,
        typer.Argument(
            metavar="FLEET.csv",
            help="The fleet's GPUs: CSV with the columns class, count.",
            show_default=False,
        ),
    ],
    workload: Annotated[
        Path | None,
        typer.Option(
            help="The jobs: CSV with the columns arrival_s, duration_s, needed_gib, tenant. "
            "Unset: drawn at random."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of random jobs.")] = 2000,
    load: Annotated[
        float,
        typer.Option(
            min=0.01, help="Work of the random jobs / capacity of the fleet.", callback=finite
        ),
    ] = 0.8,
    seed: Annotated[int, typer.Option(help="Seed of the random jobs.")] = 1,
    save: Annotated[Path | None, typer.Option(help="Write the workload to this CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot the waits to this PNG.")] = None,
    p95_wait: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="MINUTES",
            help="Find the smallest fleet of these classes on which 95 % of each class's jobs "
            "wait no longer.",
            callback=finite,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Simulate how long jobs wait on a fleet, or size one for a wait."""
    from tasks.errors import UsageError
    from tasks.extras import require
    from worker.cli.reports.output import print_json, stdout
    from worker.simulation.report import Simulation
    from worker.simulation.sizing import Sizing, smallest_fleet
    from worker.simulation.workload import draw_workload, read_fleet, read_workload, write_workload

    if plot is not None and p95_wait is not None:
        raise UsageError("--plot shows the waits on a given fleet; leave it or --p95-wait out")
    if plot is not None:
        require("matplotlib")
    gpus = read_fleet(fleet)
    arrivals = (
        read_workload(workload) if workload is not None else draw_workload(gpus, jobs, load, seed)
    )
    if save is not None:
        write_workload(save, arrivals)
    simulated: Simulation | Sizing
    if p95_wait is not None:
        prices = settings.prices().per_hour
        simulated = smallest_fleet(set(gpus), arrivals, p95_wait * 60, prices)
    else:
        simulated = Simulation(gpus, arrivals)
        if plot is not None:
            simulated.plot(plot)
    if json:
        print_json(simulated.document())
    else:
        stdout.print(*simulated.tables(), sep="\n")
