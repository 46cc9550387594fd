"""The real library in its own interpreter: takes requests and returns events."""

import itertools
import os
import selectors
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.events import Event, TrainDone, TrainFailed, parse_event
from tasks.jobs.invoke import PATCHES
from tasks.jobs.pipeline import PipelineConfig
from tasks.stages.trainer_protocol import TrainerRequest
from tests.worker.trainer.runs import Events, Images, Trained, request_of, run_cache
from worker.supervision.engines import invoke_environment

# Set where the library is installed; see docs/guides/invoke-training.md.
PYTHON = os.environ.get("TRAINING_INVOKE_PYTHON")
WHY_SKIPPED = "no interpreter with invoke-training in TRAINING_INVOKE_PYTHON"
ALL = tuple(sorted(PATCHES))
_starts = itertools.count(5000)


class Library:
    """Trainer processes of that interpreter, one at a time; each serves many requests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._events = -1
        self.exit_code: int | None = None
        """The exit code of the last process that ended."""

    def train(
        self,
        data: Images,
        config: PipelineConfig,
        *,
        patches: tuple[str, ...] = ALL,
        **fields: Any,
    ) -> Trained:
        """Cache with our own engine if the config asks for it, then train with the library."""
        if (config.caches_text or config.cache_vae_outputs) and "cache_index_key" not in fields:
            fields["cache_index_key"] = run_cache(data, config).index_key
        fields.setdefault("start_id", str(next(_starts)))
        request = request_of(
            data, "train", config, engine="invoke-training", patches=patches, **fields
        )
        trained = Trained(data, self.run(request))
        last = trained.events[-1] if trained.events else None
        assert isinstance(last, TrainDone), self._why(trained.events)
        return trained

    def run(
        self, request: TrainerRequest, on_event: Callable[[Event], None] = lambda _: None
    ) -> Events:
        """Run a request and return all its events; the last one reports its end."""
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(request.model_dump_json().encode() + b"\n")
        process.stdin.flush()
        events, rest = Events(), b""
        with selectors.DefaultSelector() as ready:
            ready.register(self._events, selectors.EVENT_READ)
            while ready.select():
                chunk = os.read(self._events, 65536)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    events.append(parse_event(line))
                    on_event(events[-1])
                if not chunk or (events and isinstance(events[-1], TrainDone)):
                    break
        if not events or not isinstance(events[-1], TrainDone):
            self.close()
        return events

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.exit_code = self._process.wait()
        os.close(self._events)
        self._process = None

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._events, write = os.pipe()
            command = [str(PYTHON), "-P", "-m", "worker.trainer.invoke", "--events-fd", str(write)]
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[write],
                    env={**invoke_environment(dict(os.environ)), "OMP_NUM_THREADS": "1"},
                )
            os.close(write)
        return self._process

    @property
    def _log(self) -> Path:
        return self._folder / "library.log"

    def _why(self, events: Events) -> str:
        last = events[-1] if events else None
        message = last.message if isinstance(last, TrainFailed) else ""
        return message + self._log.read_text("utf-8", errors="replace")[-6000:]
