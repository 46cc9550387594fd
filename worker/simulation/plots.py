"""Images of simulations."""

from pathlib import Path

from matplotlib.figure import Figure

from tasks.errors import InvalidJobError, Problem
from worker.simulation.simulator import Run

_MINUTE_S = 60.0


def plot_waits(runs: dict[str, list[Run]], path: Path) -> None:
    """Draw which share of the jobs waited how long, a line for each policy.

    Raises:
        InvalidJobError: The file cannot be written, or is no image by its name.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, of in runs.items():
        waits = sorted(run.wait_s / _MINUTE_S for run in of)
        axes.step(waits, [(i + 1) / len(waits) for i in range(len(waits))], label=name)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=0)
    axes.set_xlabel("wait for a GPU, minutes")
    axes.set_ylabel("share of the jobs that waited no longer")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InvalidJobError([Problem("--plot", str(error))]) from error
