import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.errors import ErrorCode, SupersededError, TrainerError, UnreadableFileError
from tasks.events import CacheDone, Event, TrainDone, TrainerStarted
from tasks.jobs.job import parse_job
from tasks.stages.trainer_protocol import TrainerExit, TrainerRequest
from tasks.stages.worker_context import TrainerInterrupted
from tests.tasks.jobs.test_flux_lora import GOOD
from tests.waiting import wait_until
from worker.supervision import trainer_process
from worker.supervision.trainer_pool import TrainerPool, trainer_environment
from worker.supervision.trainer_process import Limits

# In place of the trainer: a real program that speaks its protocol.
PREAMBLE = """
import json, os, signal, sys, time
fd = int(sys.argv[sys.argv.index("--events-fd") + 1])
request = json.loads(sys.stdin.readline())
def emit(**event): os.write(fd, json.dumps(event).encode() + b"\\n")
def note(text): emit(kind="note", level="info", message=text)
def checkpoint(step):
    weights = dict(name="w", key="w", sha256="0", size=1)
    emit(kind="checkpoint", step=step, state_key=f"state-{step}", weights=weights)
def done(): emit(kind="train_done", steps=3, final_loss=0.5)
"""

NO_LIMITS = Limits()


@pytest.fixture
def request_line() -> TrainerRequest:
    return TrainerRequest(
        stage="train",
        job_id="job",
        start_id="1",
        name="lora",
        training=parse_job(GOOD).training,
        dataset_key="d",
        store_url="file:///nowhere",
        scratch_dir="/nowhere",
        device="cpu",
    )


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., TrainerPool]:
    def make(
        program: str,
        *,
        restarts: int = 0,
        grace_s: float = 20,
        max_requests: int = 1,
        limits: Limits = NO_LIMITS,
    ) -> TrainerPool:
        path = tmp_path / "trainer.py"
        path.write_text(PREAMBLE + program, "utf-8")
        command = (sys.executable, str(path))
        env = {**os.environ, "PYTHONWARNINGS": "ignore"}
        return TrainerPool(
            env,
            restarts=restarts,
            max_requests=max_requests,
            limits=replace(limits, grace_s=grace_s),
            command=command,
        )

    return make


def run(
    trainer: TrainerPool,
    request: TrainerRequest,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainDone:
    answer = trainer.run(request, on_event=without_starts(on_event), stop_requested=stop)
    assert isinstance(answer, TrainDone)
    return answer


def without_starts(on_event: Callable[[Event], None]) -> Callable[[Event], None]:
    """Drop the events of the pool itself."""
    return lambda event: None if isinstance(event, TrainerStarted) else on_event(event)


def no_child_left() -> bool:
    # Of these tests only: a fleet of other tests may also run below this process.
    return not any(
        part.endswith("trainer.py")
        for child in psutil.Process().children(recursive=True)
        for part in _command_line(child)
    )


def _command_line(process: psutil.Process) -> list[str]:
    """Empty for a process that has ended, waited for or not."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_events_arrive_in_order_before_the_answer(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    events: list[Event] = []
    program = "note(request['job_id']); checkpoint(2); done()"
    answer = run(trainer(program), request_line, events.append)
    assert [event.kind for event in events] == ["note", "checkpoint"]
    assert (answer.steps, answer.final_loss) == (3, 0.5)
    assert no_child_left()


def test_a_crashed_trainer_restarts_from_its_last_checkpoint(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    events: list[Event] = []
    program = """
note(str(request["resume_state_key"]))
if request["resume_state_key"] is None:
    checkpoint(1); checkpoint(2); os.kill(os.getpid(), signal.SIGKILL)
done()
"""
    run(trainer(program, restarts=1), request_line, events.append)
    notes = [event.message for event in events if event.kind == "note"]
    assert notes == [
        "None",
        "the trainer was ended by SIGKILL (the kernel does this when memory is short); "
        "it is restarted",
        "state-2",
    ]


def test_entries_stored_before_a_crash_are_not_requested_again(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    events: list[Event] = []
    program = """
note(",".join(request["cache_entries"]))
if "a" in request["cache_entries"]:
    emit(kind="pack_stored", key="p", size=1, entries=["a", "c"])
    os.kill(os.getpid(), signal.SIGKILL)
emit(kind="cache_done")
"""
    request = request_line.model_copy(
        update={"stage": "cache", "cache_entries": ("a", "b", "c", "d")}
    )
    answer = trainer(program, restarts=1).run(
        request, on_event=events.append, stop_requested=lambda: False
    )
    assert isinstance(answer, CacheDone)
    notes = [event.message for event in events if event.kind == "note"]
    assert (notes[0], notes[-1]) == ("a,b,c,d", "b,d")


def test_a_repeated_crash_is_an_error_with_the_last_output(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    program = "print('the disk is full', file=sys.stderr); sys.exit(1)"
    with pytest.raises(TrainerError, match=r"(?s)exit code 1.*the disk is full") as caught:
        run(trainer(program, restarts=2), request_line)
    assert caught.value.retryable


def test_a_reported_failure_is_not_retried(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    program = f"""
emit(kind="failed", code="out_of_memory", message="the GPU's memory is full")
sys.exit({int(TrainerExit.REFUSED)})
"""
    with pytest.raises(TrainerError, match="memory is full") as caught:
        run(trainer(program, restarts=5), request_line)
    assert caught.value.code == ErrorCode.OUT_OF_MEMORY
    assert not caught.value.retryable


FAILED = "CUDA error: unspecified launch failure"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        # The process is aborted, or hangs, at its end.
        (f"emit(kind='failed', code='gpu_failed', message={FAILED!r}); os.abort()", "gpu_failed"),
        (
            f"emit(kind='failed', code='gpu_failed', message={FAILED!r}); os.close(fd);"
            "time.sleep(600)",
            "gpu_failed",
        ),
        # C++ aborts it before Python gets the exception; bitsandbytes ends it.
        (f"print({FAILED!r}, file=sys.stderr); os.abort()", "gpu_failed"),
        (
            "print('Error out of memory at line 90 in file /src/csrc/ops.cu'); sys.exit(1)",
            "out_of_memory",
        ),
    ],
)
def test_an_error_of_the_gpu_is_not_tried_again_in_place(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest, program: str, code: str
) -> None:
    events: list[Event] = []
    with pytest.raises(TrainerError, match=r"unspecified launch failure|out of memory") as caught:
        run(trainer(program, restarts=5, grace_s=0.5), request_line, events.append)
    assert (caught.value.code, caught.value.retryable) == (code, code == "gpu_failed")
    assert not events
    assert no_child_left()


def test_a_damaged_file_is_reported_by_its_key(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    program = f"""
emit(kind="failed", code="unreadable_file", message="it is damaged", file_key="jobs/j/state")
sys.exit({int(TrainerExit.REFUSED)})
"""
    with pytest.raises(UnreadableFileError, match="it is damaged") as caught:
        run(trainer(program, restarts=5), request_line)
    assert caught.value.file_key == "jobs/j/state"
    assert caught.value.code == ErrorCode.UNREADABLE_FILE


def test_a_stopped_trainer_saves_a_checkpoint(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    events: list[Event] = []
    program = f"""
def save(*_): checkpoint(7); sys.exit({int(TrainerExit.INTERRUPTED)})
signal.signal(signal.SIGTERM, save)
note("running"); time.sleep(600)
"""
    with pytest.raises(TrainerInterrupted):
        run(trainer(program), request_line, events.append, stop=lambda: bool(events))
    assert events[-1].kind == "checkpoint"


def test_a_trainer_that_does_not_stop_is_killed(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    events: list[Event] = []
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN); note('running'); time.sleep(600)"
    with pytest.raises(TrainerInterrupted):
        run(trainer(program, grace_s=0.5), request_line, events.append, stop=lambda: bool(events))
    assert no_child_left()


def test_an_error_of_the_event_handler_ends_the_trainer(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    def refuse(event: Event) -> None:
        raise LookupError(event.kind)

    with pytest.raises(LookupError):
        run(trainer("note('x'); time.sleep(600)"), request_line, refuse)
    wait_until(no_child_left, timeout_s=10, description="the trainer ended")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("os.write(fd, b'not json\\n'); time.sleep(600)", "sent a line that is not an event"),
        ("while True: os.write(fd, b'x' * 65536)", "sent an event longer than"),
        ("os.close(fd); time.sleep(600)", "closed its pipe and did not end"),
        ("pass", "ended with exit code 0 and no answer"),
    ],
)
def test_a_trainer_that_breaks_the_protocol_is_ended(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest, program: str, message: str
) -> None:
    with pytest.raises(TrainerError, match=message):
        run(trainer(program, grace_s=1), request_line)
    assert no_child_left()


def test_trainer_environment_has_one_gpu_and_no_settings() -> None:
    ours = {"TRAINING_BROKER_URL": "redis://:secret@host", "HF_TOKEN": "t", "AWS_REGION": "r"}
    env = trainer_environment(ours, "GPU-1")
    assert "secret" not in str(env)
    assert (env["HF_TOKEN"], env["AWS_REGION"], env["CUDA_VISIBLE_DEVICES"]) == ("t", "r", "GPU-1")
    assert trainer_environment(ours, None)["CUDA_VISIBLE_DEVICES"] == ""


def test_threads_of_trainers_on_the_cpu_spin_for_a_short_time() -> None:
    assert trainer_environment({}, None)["GOMP_SPINCOUNT"] == "3000"
    assert trainer_environment({"GOMP_SPINCOUNT": "9"}, None)["GOMP_SPINCOUNT"] == "9"
    assert "GOMP_SPINCOUNT" not in trainer_environment({}, "GPU-1")


def test_trainers_ignore_other_allocator_settings(caplog: pytest.LogCaptureFixture) -> None:
    env = trainer_environment({"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}, "GPU-1")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in env
    assert env["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_CUDA_ALLOC_CONF" in caplog.text
    others = {"NVIDIA_TF32_OVERRIDE": "1", "TORCHINDUCTOR_MAX_AUTOTUNE": "1"}
    assert trainer_environment({**env, **others}, "GPU-1") == env
    assert caplog.text.count("trainers ignore") == 3


# Serves requests one after the other, and reports its process.
SERVES = """
number = 0
while request:
    number += 1
    note(f"{os.getpid()} {request['job_id']}")
    {each}
    done()
    line = sys.stdin.readline()
    request = json.loads(line) if line else None
"""


def serving(each: str = "pass") -> str:
    return SERVES.replace("{each}", each.replace("\n", "\n    "))


class Served:
    """Runs requests and records the process that served each."""

    def __init__(self, trainer: TrainerPool, request: TrainerRequest) -> None:
        self.trainer = trainer
        self._request = request
        self.processes: list[str] = []

    def run(self, job_id: str = "job", **changes: object) -> None:
        events: list[Event] = []
        request = self._request.model_copy(update={"job_id": job_id, **changes})
        try:
            run(self.trainer, request, events.append)
        finally:
            first = next(event for event in events if event.kind == "note")
            process, reported_job = first.message.split()
            assert reported_job == job_id
            self.processes.append(process)


@pytest.fixture
def served(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def make(each: str = "pass", **options: Any) -> Served:
        made.append(Served(trainer(serving(each), max_requests=3, **options), request_line))
        return made[-1]

    yield make
    for each in made:
        each.trainer.close()
    assert no_child_left()


def test_a_trainer_that_answered_serves_the_next_request(
    served: Callable[..., Served],
) -> None:
    kept = served()
    for job_id in ("a", "b", "c", "d"):
        kept.run(job_id)
    # After three requests, a new one.
    assert kept.processes[:3] == kept.processes[:1] * 3
    assert kept.processes[3] != kept.processes[0]


def test_another_base_model_gets_another_trainer(
    served: Callable[..., Served], request_line: TrainerRequest
) -> None:
    kept = served()
    other = request_line.training.model_copy(update={"model": "another/model"})
    kept.run()
    kept.run(training=other)
    kept.run(training=other)
    assert kept.processes[1] == kept.processes[2] != kept.processes[0]


@pytest.mark.parametrize(
    "problem",
    [
        "emit(kind='failed', code='diverged', message='NaN'); sys.exit(3)",
        "sys.exit(1)",
        "os.write(fd, b'nonsense\\n')",
    ],
)
def test_a_trainer_is_replaced_after_an_error(served: Callable[..., Served], problem: str) -> None:
    kept = served(f"if request['job_id'] == 'bad': {problem}")
    kept.run("good")
    with pytest.raises(TrainerError):
        kept.run("bad")
    kept.run("good")
    assert kept.processes[0] == kept.processes[1] != kept.processes[2]


def test_an_error_holds_the_output_of_its_request_only(served: Callable[..., Served]) -> None:
    kept = served(
        "print(request['job_id'], file=sys.stderr, flush=True)\nif number == 2: sys.exit(1)"
    )
    kept.run("first")
    with pytest.raises(TrainerError) as caught:
        kept.run("second")
    assert "second" in str(caught.value)
    assert "first" not in str(caught.value)


def test_an_idle_exit_costs_no_restart(served: Callable[..., Served]) -> None:
    kept = served("if request['job_id'] == 'last': done(); sys.exit(0)")
    kept.run("last")
    wait_until(no_child_left, timeout_s=10, description="the idle trainer ended")
    kept.run("next")
    assert kept.processes[0] != kept.processes[1]


def test_each_start_is_reported_as_cold_warm_or_restart(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    crashes = "if request['resume_state_key'] is None: checkpoint(1); os._exit(9)"
    events: list[Event] = []
    kept = trainer(serving(crashes), max_requests=3, restarts=1)
    for _ in range(2):
        kept.run(request_line, on_event=events.append, stop_requested=lambda: False)
    kept.close()
    starts = [event.how for event in events if isinstance(event, TrainerStarted)]
    assert starts == ["cold", "restart", "warm", "restart"]


def test_an_idle_exit_as_the_request_arrives_is_one_start(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    # It answers, and exits a moment later without reading another request.
    kept = trainer("note(str(os.getpid())); done(); time.sleep(0.5)", max_requests=9)
    events: list[Event] = []
    for _ in range(2):
        kept.run(request_line, on_event=events.append, stop_requested=lambda: False)
    kept.close()
    processes = [event.message for event in events if event.kind == "note"]
    assert len(set(processes)) == len(processes) == 2
    starts = [event.how for event in events if isinstance(event, TrainerStarted)]
    assert starts == ["cold", "cold"]
    assert no_child_left()


def test_a_trainer_with_unexpected_output_is_not_kept(served: Callable[..., Served]) -> None:
    kept = served("if number == 1: done(); time.sleep(0.2); note('unexpected')")
    kept.run()
    wait_until(
        lambda: not kept.trainer._kept or not kept.trainer._kept.is_alive(),
        timeout_s=10,
        description="it spoke",
    )
    kept.run()
    assert kept.processes[0] != kept.processes[1]


def test_a_stopped_trainer_is_not_kept(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    received: list[Event] = []
    program = """
def on_stop(*_): done(); sys.exit(0)
signal.signal(signal.SIGTERM, on_stop)
note("running"); time.sleep(600)
"""
    stopped = trainer(program, max_requests=9)
    # It answers while it is stopped: the answer counts, and the process ends.
    answer = run(stopped, request_line, received.append, stop=lambda: bool(received))
    assert isinstance(answer, TrainDone)
    assert no_child_left()


def test_a_hung_trainer_restarts_and_its_stacks_are_logged(
    trainer: Callable[..., TrainerPool],
    request_line: TrainerRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: list[Event] = []
    program = """
import faulthandler
faulthandler.register(signal.SIGUSR1)
def hang_here(): time.sleep(600)
if request["resume_state_key"] is None:
    checkpoint(7); hang_here()
note(request["resume_state_key"])
done()
"""
    hung = trainer(program, restarts=1, limits=Limits(silence_s=3.0))
    run(hung, request_line, events.append)
    notes = [event.message for event in events if event.kind == "note"]
    assert notes == ["the trainer sent no event for 3 s; it is restarted", "state-7"]
    assert "hang_here" in caplog.text
    assert no_child_left()


def test_heartbeats_keep_a_trainer_alive_and_are_not_passed_on(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    events: list[Event] = []
    program = "for _ in range(40): emit(kind='heartbeat'); time.sleep(0.1)\ndone()"
    run(trainer(program, limits=Limits(silence_s=3.0)), request_line, events.append)
    assert events == []


def test_a_trainer_over_its_memory_limit_fails_its_job(
    trainer: Callable[..., TrainerPool],
    request_line: TrainerRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer_process, "_MEASURE_MEMORY_EVERY_S", 0.1)
    program = "kept = bytearray(200_000_000); time.sleep(600)"
    greedy = trainer(program, restarts=1, limits=Limits(memory=100_000_000))
    with pytest.raises(
        TrainerError, match="TRAINING_TRAINER_MAX_MEMORY allows 100,000,000"
    ) as caught:
        run(greedy, request_line)
    assert not caught.value.retryable
    assert no_child_left()


def test_an_overdue_trainer_saves_a_checkpoint_and_fails(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    program = f"""
def stop(*_):
    checkpoint(5); sys.exit({int(TrainerExit.INTERRUPTED)})
signal.signal(signal.SIGTERM, stop)
time.sleep(600)
"""
    slow = trainer(program, restarts=1, limits=Limits(total_s=4.0))
    with pytest.raises(TrainerError, match="TRAINING_STAGE_TIMEOUT; it reached step 5"):
        run(slow, request_line)
    assert no_child_left()


def test_a_superseded_stage_ends_its_trainer_at_once(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    def superseded() -> bool:
        raise SupersededError("job", 1)

    with pytest.raises(SupersededError):
        run(trainer("time.sleep(600)"), request_line, stop=superseded)
    assert no_child_left()
