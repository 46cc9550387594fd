import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.errors import ErrorCode, SupersededError, TrainerError
from tasks.events import CacheDone, Event, TrainDone, TrainerStarted
from tasks.jobs.job import parse_job
from tasks.stages.trainer_protocol import TrainerExit, TrainerRequest
from tasks.stages.worker_context import TrainerInterrupted
from tests.tasks.jobs.test_flux_lora import GOOD
from tests.waiting import wait_until
from worker.supervision import trainer_pool as supervisor
from worker.supervision.trainer_pool import Limits, TrainerPool, trainer_environment

# What stands for the trainer: a real program that speaks its protocol.
PREAMBLE = """
import json, os, signal, sys, time
fd = int(sys.argv[sys.argv.index("--events-fd") + 1])
request = json.loads(sys.stdin.readline())
def tell(**event): os.write(fd, json.dumps(event).encode() + b"\\n")
def note(text): tell(kind="note", level="info", message=text)
def checkpoint(step):
    weights = dict(name="w", key="w", sha256="0", size=1)
    tell(kind="checkpoint", step=step, state_key=f"state-{step}", weights=weights)
def done(): tell(kind="train_done", steps=3, final_loss=0.5)
"""

NO_LIMITS = Limits()


@pytest.fixture
def request_line() -> TrainerRequest:
    return TrainerRequest(
        stage="train",
        job_id="job",
        attempt=1,
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
        most_requests: int = 1,
        limits: Limits = NO_LIMITS,
    ) -> TrainerPool:
        path = tmp_path / "trainer.py"
        path.write_text(PREAMBLE + program, "utf-8")
        command = (sys.executable, str(path))
        env = {**os.environ, "PYTHONWARNINGS": "ignore"}
        return TrainerPool(
            env,
            restarts=restarts,
            stop_grace_s=grace_s,
            most_requests=most_requests,
            limits=limits,
            command=command,
        )

    return make


def run(
    trainer: TrainerPool,
    request: TrainerRequest,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainDone:
    answer = trainer.run(request, on_event=but_its_start(on_event), stop_requested=stop)
    assert isinstance(answer, TrainDone)
    return answer


def but_its_start(on_event: Callable[[Event], None]) -> Callable[[Event], None]:
    """What only the trainer's own events get to."""
    return lambda event: None if isinstance(event, TrainerStarted) else on_event(event)


def no_child_left() -> bool:
    # Those of these tests: a fleet of other tests may be running below this process too.
    return not any(
        part.endswith("trainer.py")
        for child in psutil.Process().children(recursive=True)
        for part in _command_line(child)
    )


def _command_line(process: psutil.Process) -> list[str]:
    """Empty where it has ended, waited for or not."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_events_come_in_order_and_the_answer_at_the_end(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    told: list[Event] = []
    program = "note(request['job_id']); checkpoint(2); done()"
    answer = run(trainer(program), request_line, told.append)
    assert [event.kind for event in told] == ["note", "checkpoint"]
    assert (answer.steps, answer.final_loss) == (3, 0.5)
    assert no_child_left()


def test_a_crash_is_started_again_from_the_last_checkpoint_it_told(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    told: list[Event] = []
    program = """
note(str(request["resume_state_key"]))
if request["resume_state_key"] is None:
    checkpoint(1); checkpoint(2); os.kill(os.getpid(), signal.SIGKILL)
done()
"""
    run(trainer(program, restarts=1), request_line, told.append)
    notes = [event.message for event in told if event.kind == "note"]
    assert notes == [
        "None",
        "the trainer was ended by SIGKILL (so does the kernel where memory is short); "
        "it is started again",
        "state-2",
    ]


def test_entries_that_were_stored_before_a_crash_are_not_asked_for_again(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    told: list[Event] = []
    program = """
note(",".join(request["cache_entries"]))
if "a" in request["cache_entries"]:
    tell(kind="pack_stored", key="p", size=1, entries=["a", "c"])
    os.kill(os.getpid(), signal.SIGKILL)
tell(kind="cache_done")
"""
    request = request_line.model_copy(
        update={"stage": "cache", "cache_entries": ("a", "b", "c", "d")}
    )
    answer = trainer(program, restarts=1).run(
        request, on_event=told.append, stop_requested=lambda: False
    )
    assert isinstance(answer, CacheDone)
    notes = [event.message for event in told if event.kind == "note"]
    assert (notes[0], notes[-1]) == ("a,b,c,d", "b,d")


def test_a_trainer_that_always_crashes_is_an_error_with_its_last_words(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    program = "print('the disk is full', file=sys.stderr); sys.exit(1)"
    with pytest.raises(TrainerError, match=r"(?s)exit code 1.*the disk is full") as caught:
        run(trainer(program, restarts=2), request_line)
    assert caught.value.retryable


def test_a_failure_it_foresaw_is_told_in_its_own_words_and_not_tried_again(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    program = f"""
tell(kind="failed", code="out_of_memory", message="the GPU's memory is full")
sys.exit({int(TrainerExit.REFUSED)})
"""
    with pytest.raises(TrainerError, match="memory is full") as caught:
        run(trainer(program, restarts=5), request_line)
    assert caught.value.code == ErrorCode.OUT_OF_MEMORY
    assert not caught.value.retryable


def test_a_stop_lets_it_save_a_checkpoint(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    told: list[Event] = []
    program = f"""
def save(*_): checkpoint(7); sys.exit({int(TrainerExit.INTERRUPTED)})
signal.signal(signal.SIGTERM, save)
note("running"); time.sleep(600)
"""
    with pytest.raises(TrainerInterrupted):
        run(trainer(program), request_line, told.append, stop=lambda: bool(told))
    assert told[-1].kind == "checkpoint"


def test_one_that_does_not_stop_is_ended_after_its_grace(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    told: list[Event] = []
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN); note('deaf'); time.sleep(600)"
    with pytest.raises(TrainerInterrupted):
        run(trainer(program, grace_s=0.5), request_line, told.append, stop=lambda: bool(told))
    assert no_child_left()


def test_an_error_of_the_reader_ends_the_trainer(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    def refuse(event: Event) -> None:
        raise LookupError(event.kind)

    with pytest.raises(LookupError):
        run(trainer("note('x'); time.sleep(600)"), request_line, refuse)
    wait_until(no_child_left, timeout_s=10, description="the trainer ended")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("os.write(fd, b'not json\\n'); time.sleep(600)", "sent what is no event"),
        ("while True: os.write(fd, b'x' * 65536)", "sent an event longer than"),
        ("os.close(fd); time.sleep(600)", "closed its pipe and did not end"),
        ("pass", "ended with exit code 0 and no answer"),
    ],
)
def test_one_that_breaks_the_protocol_is_ended_and_told(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest, program: str, said: str
) -> None:
    with pytest.raises(TrainerError, match=said):
        run(trainer(program, grace_s=1), request_line)
    assert no_child_left()


def test_its_environment_holds_none_of_our_settings_and_only_its_gpu() -> None:
    ours = {"TRAINING_BROKER_URL": "redis://:secret@host", "HF_TOKEN": "t", "AWS_REGION": "r"}
    env = trainer_environment(ours, "GPU-1")
    assert "secret" not in str(env)
    assert (env["HF_TOKEN"], env["AWS_REGION"], env["CUDA_VISIBLE_DEVICES"]) == ("t", "r", "GPU-1")
    assert trainer_environment(ours, None)["CUDA_VISIBLE_DEVICES"] == ""


# Serves requests one after the other, and tells which process it is.
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
    """Runs requests and hears which process served each."""

    def __init__(self, trainer: TrainerPool, request: TrainerRequest) -> None:
        self.trainer = trainer
        self._request = request
        self.processes: list[str] = []

    def run(self, job_id: str = "job", **changes: object) -> None:
        told: list[Event] = []
        request = self._request.model_copy(update={"job_id": job_id, **changes})
        try:
            run(self.trainer, request, told.append)
        finally:
            first = next(event for event in told if event.kind == "note")
            process, told_job = first.message.split()
            assert told_job == job_id
            self.processes.append(process)


@pytest.fixture
def served(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def make(each: str = "pass", **options: Any) -> Served:
        made.append(Served(trainer(serving(each), most_requests=3, **options), request_line))
        return made[-1]

    yield make
    for each in made:
        each.trainer.close()
    assert no_child_left()


def test_a_trainer_that_answered_well_serves_the_next_request(
    served: Callable[..., Served],
) -> None:
    kept = served()
    for job_id in ("a", "b", "c", "d"):
        kept.run(job_id)
    # After three requests, another one.
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
        "tell(kind='failed', code='diverged', message='NaN'); sys.exit(3)",
        "sys.exit(1)",
        "os.write(fd, b'nonsense\\n')",
    ],
)
def test_after_an_error_there_is_a_new_one(served: Callable[..., Served], problem: str) -> None:
    kept = served(f"if request['job_id'] == 'bad': {problem}")
    kept.run("good")
    with pytest.raises(TrainerError):
        kept.run("bad")
    kept.run("good")
    assert kept.processes[0] == kept.processes[1] != kept.processes[2]


def test_its_last_words_are_those_on_this_request(served: Callable[..., Served]) -> None:
    kept = served(
        "print(request['job_id'], file=sys.stderr, flush=True)\nif number == 2: sys.exit(1)"
    )
    kept.run("first")
    with pytest.raises(TrainerError) as caught:
        kept.run("second")
    assert "second" in str(caught.value)
    assert "first" not in str(caught.value)


def test_one_that_ended_idle_costs_no_restart(served: Callable[..., Served]) -> None:
    kept = served("if request['job_id'] == 'last': done(); sys.exit(0)")
    kept.run("last")
    wait_until(no_child_left, timeout_s=10, description="the idle trainer ended")
    kept.run("next")
    assert kept.processes[0] != kept.processes[1]


def test_every_start_is_told_as_cold_warm_or_after_a_crash(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    crashes = "if request['resume_state_key'] is None: checkpoint(1); os._exit(9)"
    told: list[Event] = []
    kept = trainer(serving(crashes), most_requests=3, restarts=1)
    for _ in range(2):
        kept.run(request_line, on_event=told.append, stop_requested=lambda: False)
    kept.close()
    starts = [event.how for event in told if isinstance(event, TrainerStarted)]
    assert starts == ["cold", "restart", "warm", "restart"]


def test_one_that_ends_as_the_request_comes_costs_no_restart(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    # It answers, and leaves without reading on while its process is still there.
    kept = trainer("note(str(os.getpid())); done(); time.sleep(0.5)", most_requests=9)
    told: list[Event] = []
    run(kept, request_line, told.append)
    run(kept, request_line, told.append)
    kept.close()
    processes = [event.message for event in told if event.kind == "note"]
    assert len(set(processes)) == len(processes) == 2
    assert no_child_left()


def test_one_that_speaks_unasked_is_not_kept(served: Callable[..., Served]) -> None:
    kept = served("if number == 1: done(); time.sleep(0.2); note('unasked')")
    kept.run()
    wait_until(
        lambda: not kept.trainer._kept or not kept.trainer._kept.is_alive(),
        timeout_s=10,
        description="it spoke",
    )
    kept.run()
    assert kept.processes[0] != kept.processes[1]


def test_a_stop_is_not_left_to_the_next_request(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    asked: list[Event] = []
    program = """
def heard(*_): done(); sys.exit(0)
signal.signal(signal.SIGTERM, heard)
note("running"); time.sleep(600)
"""
    stopped = trainer(program, most_requests=9)
    # It answered while it was being stopped: the answer counts, and the process is gone.
    answer = run(stopped, request_line, asked.append, stop=lambda: bool(asked))
    assert isinstance(answer, TrainDone)
    assert no_child_left()


def test_a_hung_trainer_is_started_again_from_its_checkpoint_and_says_where_it_hung(
    trainer: Callable[..., TrainerPool],
    request_line: TrainerRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []
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
    run(hung, request_line, told.append)
    notes = [event.message for event in told if event.kind == "note"]
    assert notes == ["the trainer gave no sign of life for 3 s; it is started again", "state-7"]
    assert "hang_here" in caplog.text
    assert no_child_left()


def test_a_trainer_that_beats_is_not_hung_and_its_beats_are_told_to_nobody(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    told: list[Event] = []
    program = "for _ in range(40): tell(kind='heartbeat'); time.sleep(0.1)\ndone()"
    run(trainer(program, limits=Limits(silence_s=3.0)), request_line, told.append)
    assert told == []


def test_a_trainer_that_takes_too_much_memory_fails_its_job(
    trainer: Callable[..., TrainerPool],
    request_line: TrainerRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "_WEIGH_EVERY_S", 0.1)
    program = "kept = bytearray(200_000_000); time.sleep(600)"
    greedy = trainer(program, restarts=1, limits=Limits(memory=100_000_000))
    with pytest.raises(
        TrainerError, match="TRAINING_TRAINER_MAX_MEMORY allows 100,000,000"
    ) as told:
        run(greedy, request_line)
    assert not told.value.retryable
    assert no_child_left()


def test_a_trainer_that_takes_too_long_saves_and_its_job_fails(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    program = f"""
def stop(*_):
    checkpoint(5); sys.exit({int(TrainerExit.INTERRUPTED)})
signal.signal(signal.SIGTERM, stop)
time.sleep(600)
"""
    slow = trainer(program, restarts=1, limits=Limits(total_s=4.0))
    with pytest.raises(TrainerError, match="TRAINING_STAGE_TIMEOUT; it came to step 5"):
        run(slow, request_line)
    assert no_child_left()


def test_a_start_that_was_superseded_ends_its_trainer_at_once(
    trainer: Callable[..., TrainerPool], request_line: TrainerRequest
) -> None:
    def superseded() -> bool:
        raise SupersededError("job", 1)

    with pytest.raises(SupersededError):
        run(trainer("time.sleep(600)"), request_line, stop=superseded)
    assert no_child_left()
