from tasks.app import make_app
from tasks.contract import STAGES, SUBMIT, task_name
from tasks.settings.settings import Settings
from tasks.stages.worker_context import WorkerContext

# Nothing is sent here; the result backend must exist all the same.
BROKER_URL = "redis://127.0.0.1:1/0"


def test_an_app_runs_its_tasks_with_its_own_runtime_beside_other_apps() -> None:
    asked: list[str] = []

    def first() -> WorkerContext:
        asked.append("first")
        raise KeyError

    def second() -> WorkerContext:
        asked.append("second")
        raise KeyError

    apps = [make_app(Settings(), BROKER_URL, runtime) for runtime in (first, second)]
    for name in (SUBMIT, *map(task_name, STAGES)):
        for app in apps:
            app.tasks[name].apply(args=("job",))
    assert asked == ["first", "second"] * 5


def test_a_process_that_only_sends_has_no_task_even_beside_a_worker() -> None:
    def unused() -> WorkerContext:
        raise AssertionError("no task runs here")

    worker = make_app(Settings(), BROKER_URL, unused)
    assert SUBMIT in worker.tasks
    sender = make_app(Settings(), BROKER_URL)
    assert [name for name in sender.tasks if not name.startswith("celery.")] == []


def test_a_message_may_go_to_other_workers_as_often_as_it_takes() -> None:
    def unused() -> WorkerContext:
        raise AssertionError("no task runs here")

    app = make_app(Settings(), BROKER_URL, unused)
    assert {app.tasks[name].max_retries for name in (SUBMIT, *map(task_name, STAGES))} == {None}
