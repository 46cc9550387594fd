"""Processes that report to trackers, as their worker sees them: nothing here waits for one."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from queue import Full, Queue
from typing import Any

from tasks.tracking import TrackerRequest
from worker.supervision.process import kill_group, spawn

# Two minutes of a trainer's progress.
_MAX_WAITING = 1200
_MAX_OUTPUT = 4096
# A run that ends well may send what is left. One whose server has not answered by then is given up.
_FLUSH_S, _GIVE_UP_S = 20.0, 3.0
_INHERITED = (
    *("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "WANDB_MODE"),
    *("http_proxy", "https_proxy", "no_proxy"),
)
_NAMES = {"wandb": "Weights & Biases", "mlflow": "MLflow"}


class TrackerProcess:
    """A process that reports one job's run.

    Args:
        request: The job, with its tenant's secret, which goes over the process's input.
        env: This process's environment, of which it gets what its network needs.
        command: The process's command.
    """

    def __init__(
        self,
        request: TrackerRequest,
        env: Mapping[str, str],
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "worker.tracker"),
    ) -> None:
        self._name = _NAMES[request.secret.tracker]
        kept = {name: env[name] for name in _INHERITED if name in env}
        self._popen = spawn(
            command,
            env={**kept, "HOME": request.scratch_dir},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._popen.stdout is not None
        os.set_blocking(self._popen.stdout.fileno(), False)
        self._has_warned = self._is_full = self._is_closed = self._has_run = False
        self._reason: str | None = None
        self._lines: Queue[Callable[[], str | None] | None] = Queue(_MAX_WAITING)
        self._put(request.model_dump_json)
        self._thread = threading.Thread(target=self._write, name="tracker", daemon=True)
        self._thread.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, unless too many wait."""
        self._put(lambda: json.dumps(message))

    def send_image(self, step: int, caption: str, download: Callable[[], str | None]) -> None:
        """Send an image, unless too many messages wait.

        Args:
            step: The number of weight updates so far.
            caption: Its name.
            download: Called in another thread; returns the image's file, or None for no image.
        """

        def line() -> str | None:
            path = download()
            return path and json.dumps({"image": path, "step": step, "caption": caption})

        self._put(line)

    def warning(self) -> str | None:
        """Return why the run is not reported any more, once; None while it is."""
        if self._has_warned:
            return None
        if not self._is_closed:
            self._reason = self._find_reason()
        self._has_warned = self._reason is not None
        return self._reason and f"the run is no longer reported to {self._name}: {self._reason}"

    def close(self, end: str) -> None:
        """End the run, and the process after at most some seconds.

        Args:
            end: ``succeeded``, ``failed`` or ``interrupted``.
        """
        self.send({"end": end})
        self._put_last()
        self._read()
        timeout_s = _FLUSH_S if end == "succeeded" and self._has_run else _GIVE_UP_S
        is_late = False
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            is_late = True
        kill_group(self._popen)
        # The thread, if it waits for a message.
        self._put_last()
        self._thread.join(timeout_s)
        found = self._find_reason()
        is_done = self._popen.returncode == 0 and not self._is_full
        if is_late:
            found = "it took too long at the end"
        self._reason = None if is_done else found
        self._is_closed = True
        assert self._popen.stdout is not None
        self._popen.stdout.close()

    def _find_reason(self) -> str | None:
        self._read()
        if self._reason is not None:
            return self._reason
        if self._is_full:
            return "it takes values more slowly than the trainer makes them"
        return "its process ended" if self._popen.poll() is not None else None

    def _read(self) -> None:
        """Read what the process has printed."""
        assert self._popen.stdout is not None
        for line in (self._popen.stdout.read(_MAX_OUTPUT) or b"").splitlines():
            with contextlib.suppress(ValueError):
                printed = json.loads(line)
                self._has_run |= printed is True
                self._reason = printed if isinstance(printed, str) else self._reason

    def _put_last(self) -> None:
        with contextlib.suppress(Full):
            self._lines.put_nowait(None)

    def _put(self, line: Callable[[], str | None]) -> None:
        try:
            self._lines.put_nowait(line)
        except Full:
            self._is_full = True

    def _write(self) -> None:
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError), self._popen.stdin as pipe:
            while (make := self._lines.get()) is not None:
                text = make()
                if text is not None:
                    pipe.write(text.encode() + b"\n")
                    pipe.flush()
