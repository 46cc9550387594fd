import json
import subprocess
import sys


def logged(log_format: str) -> list[str]:
    program = (
        "import logging\n"
        "from tasks.logging_setup import set_up_logging\n"
        f"set_up_logging({log_format!r}, 'gpu-40gb-0')\n"
        "log = logging.getLogger('tasks.stages.runner')\n"
        "log.info('%s begins', 'train', extra={'job': 'j1', 'stage': 'train'})\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: log.exception('failed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_text_names_the_process_the_job_and_the_stage() -> None:
    first = logged("text")[0]
    assert "gpu-40gb-0" in first
    assert first.endswith("train begins [job=j1 stage=train]")


def test_json_is_one_object_a_line() -> None:
    begins, failed = (json.loads(line) for line in logged("json"))
    assert (begins["message"], begins["job"], begins["stage"]) == ("train begins", "j1", "train")
    assert (begins["process"], begins["level"]) == ("gpu-40gb-0", "INFO")
    assert "ZeroDivisionError" in failed["exception"]
