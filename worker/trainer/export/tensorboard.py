"""A run's metrics as a TensorBoard file."""

from pathlib import Path

from tensorboardX import SummaryWriter

from worker.trainer.checkpoint import LossHistory


def write_metrics(folder: Path, history: LossHistory) -> Path:
    """Write loss and learning rate of every step, those before a resume too.

    Args:
        folder: A new folder for the file.
        history: The steps.

    Returns:
        The file. TensorBoard finds it by the ``tfevents`` in its name.
    """
    writer = SummaryWriter(logdir=str(folder))
    rows = zip(history.losses, history.learning_rates, strict=True)
    for step, (loss, learning_rate) in enumerate(rows, start=1):
        # The step stands for the time too: the run's own clock would say when it was resumed.
        writer.add_scalar("train/loss", loss, step, walltime=step)
        writer.add_scalar("train/learning_rate", learning_rate, step, walltime=step)
    writer.close()
    (written,) = folder.glob("*tfevents*")
    return written.rename(folder / "events.out.tfevents.train")
