import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.settings.settings import Settings
from worker.errors import PortsTakenError
from worker.local.local_fleet import PARTS, Fleet, _Child
from worker.local.log_files import LogFiles
from worker.local.ports import check_ports, is_listening


def test_taken_ports_are_reported_together(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = Settings(flower_port=port, metrics_port=port, console_port=0)
        with pytest.raises(PortsTakenError) as error:
            check_ports(settings, PARTS)
    for setting in ("TRAINING_FLOWER_PORT", "TRAINING_METRICS_PORT"):
        assert f"port {port} is taken; set {setting}" in str(error.value)
    with pytest.raises(PortsTakenError, match="TRAINING_CONSOLE_PORT"):  # two parts on one port
        check_ports(settings.model_copy(update={"console_port": port}), ("flower", "console"))
    check_ports(settings, ("flower", "console"))


def test_up_starts_nothing_if_a_port_is_taken(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        env |= {"TRAINING_HOME": str(tmp_path / "home"), "TRAINING_FLOWER_PORT": str(port)}
        env |= {"TRAINING_CONSOLE_PORT": "0"}
        command = [sys.executable, "-P", "-m", "worker", "up"]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 18
    assert f"port {port} is taken; set TRAINING_FLOWER_PORT" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "home" / "broker").exists()


@pytest.mark.parametrize("drains", [False, True])
def test_only_workers_stay_stopped_after_exit_0(drains: bool) -> None:
    child = _Child("flower", [], {}, drains=drains, logs=LogFiles(Path(), 0))
    child._schedule_restart(1000.0, 0)
    assert (child.start_at < 1060) == (not drains)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_fleet_is_ready_once_its_parts_listen(address: str) -> None:
    with socket.socket() as console:
        console.bind((address, 0))
        port: int = console.getsockname()[1]
        asked: list[bool] = []

        def is_ready() -> bool:
            asked.append(is_listening(address, port))
            if len(asked) == 2:
                console.listen()
            return asked[-1]

        logs = LogFiles(Path(), 0)
        Fleet([], "", None, [], {"console": is_ready}, 1, logs).wait_until_ready()
    assert asked == [False, False, True]
    assert not is_listening(address, port)
