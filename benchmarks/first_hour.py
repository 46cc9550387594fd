"""Time from a clean machine to the first file in the browser, step by step.

    python -P -m benchmarks.first_hour [--install] [--report benchmarks/RESULTS.md]

Does what docs/quickstart.md says, in a folder of its own: installs the last commit (with
``--install``, and without pip's cache; otherwise this checkout's environment is used), starts
``training-worker up`` in a terminal, opens the login link that it prints in a browser, clicks "Try
it", and downloads the file of the job.
"""

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page

from benchmarks.results import parser_of, report_result
from tests.integration.browsers import chromium, visit
from tests.integration.fleets import free_port
from tests.waiting import wait_until
from worker.supervision.process import spawn

_ROOT = Path(__file__).parents[1]
_EXTRAS = "train,console,embedded,flower"
_READY_WITHIN_S = 180
_JOB_WITHIN_MS = 600_000
_STOP_WITHIN_S = 60


class Steps:
    """The steps and their seconds, printed as they end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step."""
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        print(f"{name}: {self.seconds[name]:.0f} s", flush=True)


class Terminal:
    """A command in a terminal, and what it prints."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._output = b""
        self._master, follower = pty.openpty()
        self.process = spawn(command, env=env, stdin=follower, stdout=follower, stderr=follower)
        os.close(follower)
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def text(self) -> str:
        """What it has printed."""
        return self._output.decode("utf-8", "replace")

    def stop(self) -> None:
        """Stop it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(_STOP_WITHIN_S)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the command has ended
                return
            self._output += data


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--install", action="store_true", help="install into a fresh folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="first-hour-") as folder:
        seconds = _measure(Path(folder), install=arguments.install)
    lines = [f"{name}: {value:.0f} s" for name, value in seconds.items()]
    lines.append(f"In all: {sum(seconds.values()):.0f} s")
    command = "python -P -m benchmarks.first_hour" + (" --install" if arguments.install else "")
    goal = "the first file within a quarter of an hour"
    report_result(arguments.report, "First hour", command, goal, lines)


def _measure(folder: Path, *, install: bool) -> dict[str, float]:
    steps = Steps()
    binary = Path(sys.executable).with_name("training-worker")
    if install:
        source = folder / "training-worker"
        with steps.step("get the source (a local clone)"):
            clone = ["git", "clone", "--quiet", "--depth", "1", _ROOT.as_uri(), str(source)]
            subprocess.run(clone, check=True)
        with steps.step("`bash deploy/install.sh`, without pip's cache"):
            script = ["bash", str(source / "deploy/install.sh"), _EXTRAS]
            env = {**os.environ, "PIP_NO_CACHE_DIR": "1"}
            env.pop("VIRTUAL_ENV", None)
            subprocess.run(script, check=True, env=env)
        binary = source / ".venv/bin/training-worker"
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    env |= {"TRAINING_HOME": str(folder / "home"), "TRAINING_FLOWER_PORT": "0"}
    env["TRAINING_CONSOLE_PORT"] = str(free_port())
    with steps.step("`training-worker up`, until it is ready"):
        terminal = Terminal([str(binary), "up"], env)
        wait_until(
            lambda: "submit:" in terminal.text or terminal.process.poll() is not None,
            timeout_s=_READY_WITHIN_S,
            description="the fleet is ready",
            detail=lambda: terminal.text,
        )
    link = re.search(r"log in: (http\S+?)(/login\S+)", terminal.text)
    assert link is not None, terminal.text
    try:
        with chromium() as browser, visit(browser, link[1]) as page:
            _try_it(page, link[2], steps, folder)
    finally:
        terminal.stop()
    return steps.seconds


def _try_it(page: Page, link: str, steps: Steps, folder: Path) -> None:
    with steps.step("open the login link, press Log in"):
        page.goto(link)
        page.get_by_role("button", name="Log in").click()
        button = page.get_by_role("button", name="Try it")
        button.wait_for()
    with steps.step("press Try it, until the job has succeeded"):
        button.click()
        page.wait_for_url("**/jobs/*")
        page.get_by_role("link", name=re.compile("Download .*safetensors")).first.wait_for(
            timeout=_JOB_WITHIN_MS
        )
    with steps.step("download the file"):
        with page.expect_download() as download:
            page.get_by_role("link", name=re.compile("Download .*safetensors")).first.click()
        path = folder / "lora.safetensors"
        download.value.save_as(path)
    assert path.stat().st_size > 0


if __name__ == "__main__":
    main()
