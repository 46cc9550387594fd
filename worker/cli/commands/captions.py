"""The command that lets a model write the captions of a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.command import Json, checked_tenant, command
from worker.cli.help import JOB_FILES, Group, about

if TYPE_CHECKING:
    from tasks.captions.requests import CaptionStyle
    from tasks.captions.runs import CaptionRun
    from tasks.settings.settings import Settings

commands = typer.Typer(cls=Group)


@commands.command(
    **about("caption photos", "caption photos --short", purpose=JOB_FILES, docs="guides/jobs.md")
)
@command
def caption(
    settings: "Settings",
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder of images.", show_default=False)
    ],
    short: Annotated[bool, typer.Option("--short", help="One sentence an image.")] = False,
    tenant: Annotated[str, typer.Option(help="The tenant of the upload.")] = "default",
    json: Json = False,
) -> int:
    """Write a caption file for each image of a folder that has none.

    The model of TRAINING_CAPTION_MODEL writes them on the fleet. Captions that exist stay as they
    are. This machine must have the store.
    """
    from tasks.errors import EXIT_CODES, ErrorCode
    from tasks.escaping import listed
    from worker.cli.caption_folder import caption_folder
    from worker.cli.client import client_of
    from worker.cli.reports.output import counted, print_json, print_warning, stderr, stdout

    last = ""

    def report(run: "CaptionRun") -> None:
        nonlocal last
        line = f"{run.done} of {run.total} images" if run.total else run.state
        if not json and line != last:
            last = line
            stderr.print(line)

    style: CaptionStyle = "short" if short else "detailed"
    client = client_of(settings)
    done = caption_folder(settings, client, folder, checked_tenant(tenant), style, report)
    if json:
        print_json({"written": done.written, "kept": done.kept, "without": done.failed})
    else:
        kept = f"; {counted(done.kept, 'image')} had one" if done.kept else ""
        stdout.print(f"{counted(len(done.written), 'caption')} written{kept}")
        if done.failed:
            print_warning(f"no caption could be written for {listed(done.failed)}")
    return EXIT_CODES[ErrorCode.INVALID_DATASET] if done.failed else 0
