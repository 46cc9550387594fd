"""``training-worker contract``."""

from pathlib import Path

from tasks.schemas.contract_files import contract_files
from tasks.settings.settings import Settings
from worker.cli.output import stdout


def run(settings: Settings, *, folder: Path) -> None:
    """Write the contract's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contract_files().items():
        (folder / name).write_text(text, "utf-8")
        stdout.print(str(folder / name), markup=False, soft_wrap=True)
