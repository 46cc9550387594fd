import subprocess
import sys
from pathlib import Path

import tasks.contract
from tasks import contract
from tasks.app import make_app
from tasks.settings.settings import Settings
from tasks.stages.celery_tasks import make_worker_app
from tasks.stages.worker_context import WorkerContext


def no_runtime() -> WorkerContext:
    raise AssertionError("no task runs here")


def test_the_contract_is_one_file_that_needs_only_the_standard_library(tmp_path: Path) -> None:
    copy = tmp_path / "their_contract.py"
    copy.write_bytes(Path(tasks.contract.__file__).read_bytes())
    program = "import their_contract; print(their_contract.SUBMIT)"
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.append({str(tmp_path)!r});{program}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "training.submit"


def test_every_task_is_registered_by_its_wire_name(broker_url: str) -> None:
    app = make_worker_app(Settings(), broker_url, no_runtime)
    tasks = {name for name in app.tasks if not name.startswith("celery.")}
    assert tasks == {contract.SUBMIT, contract.CAPTION, *map(contract.task_name, contract.STAGES)}
    assert {contract.PREPARE, contract.CACHE, contract.TRAIN, contract.PUBLISH} < tasks


def test_nothing_but_json_is_accepted(broker_url: str) -> None:
    conf = make_app(Settings(), broker_url).conf
    assert conf.accept_content == ["json"]
    assert (conf.task_serializer, conf.result_serializer) == ("json", "json")


def test_a_message_is_held_until_its_work_is_done_and_one_at_a_time(broker_url: str) -> None:
    conf = make_app(Settings(), broker_url).conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert (conf.worker_prefetch_multiplier, conf.worker_concurrency) == (1, 1)
    assert conf.worker_pool == "prefork"
