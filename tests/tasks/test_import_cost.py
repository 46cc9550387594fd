import json
import subprocess
import sys

import pytest

# What only stage bodies and trainers need.
HEAVY = {"huggingface_hub", "httpx2", "httpcore2", "pyarrow", "PIL", "tokenizers", "torch"}
BODIES = {
    f"tasks.stages.{name}"
    for name in ("cache", "celery_tasks", "prepare", "publish", "runner", "train")
}


@pytest.mark.parametrize("module", ["tasks.client", "tasks.app", "tasks.events"])
def test_a_sender_imports_no_stage_body(module: str) -> None:
    program = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-P", "-c", program]
    imported = set(json.loads(subprocess.check_output(command, text=True)))
    assert module in imported
    assert not (HEAVY | BODIES) & imported


def test_an_event_imports_neither_celery_nor_redis() -> None:
    program = "import sys, tasks.events; print('celery' in sys.modules, 'redis' in sys.modules)"
    printed = subprocess.check_output([sys.executable, "-P", "-c", program], text=True)
    assert printed.split() == ["False", "False"]
