import ast
import sys
from pathlib import Path

from routing.queues import CPU_QUEUE
from tasks import contract
from tasks.app import make_app
from tasks.runtime import Runtime
from tasks.settings import Settings

BROKER_URL = "memory://"


def no_runtime() -> Runtime:
    raise AssertionError("no task is run here")


def wire_names() -> set[str]:
    names = {contract.SUBMIT, contract.PREPARE, contract.CACHE, contract.TRAIN, contract.PUBLISH}
    assert len(names) == 5
    return names


def test_a_backend_can_copy_the_contract_since_it_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(contract.__file__).read_text("utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


def test_the_tasks_that_a_worker_registers_are_those_of_the_contract() -> None:
    app = make_app(Settings(), BROKER_URL, no_runtime)
    registered = {name for name in app.tasks if not name.startswith("celery.")}
    assert registered == wire_names()


def test_a_process_that_only_sends_registers_no_task() -> None:
    app = make_app(Settings(), BROKER_URL)
    assert {name for name in app.tasks if not name.startswith("celery.")} == set()


def test_every_stage_has_the_name_that_the_contract_spells_out() -> None:
    assert [contract.task_name(stage) for stage in contract.STAGES] == [
        contract.PREPARE,
        contract.CACHE,
        contract.TRAIN,
        contract.PUBLISH,
    ]
    assert contract.SUBMIT_QUEUE == CPU_QUEUE
