import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasks.state.connection import connect
from tests.waiting import wait_until
from worker.errors import BrokerStartError
from worker.local.embedded_broker import EmbeddedBroker, find_running


def test_it_answers_at_its_url_and_is_found_in_its_home(tmp_path: Path) -> None:
    assert find_running(tmp_path) is None
    with EmbeddedBroker(tmp_path) as broker:
        assert find_running(tmp_path) == broker.url
        assert connect(broker.url).ping()
    assert find_running(tmp_path) is None


def test_it_listens_on_no_network_and_nobody_else_can_reach_its_socket(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        client = connect(broker.url)
        assert client.config_get("port") == {"port": "0"}
        socket = Path(broker.url.removeprefix("redis+socket://"))
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700


def test_what_is_in_it_survives_a_restart(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        connect(broker.url).lpush("queue", "job")
    with EmbeddedBroker(tmp_path) as broker:
        assert connect(broker.url).lrange("queue", 0, -1) == ["job"]


def test_a_home_too_deep_for_a_socket_works_all_the_same(tmp_path: Path) -> None:
    home = tmp_path / ("deep" * 25)
    with EmbeddedBroker(home) as broker:
        assert find_running(home) == broker.url


def test_a_second_one_in_the_same_home_is_refused(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path), pytest.raises(BrokerStartError, match="another fleet runs"):
        EmbeddedBroker(tmp_path).start()


def test_it_ends_with_its_starter_even_when_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, worker.local.embedded_broker as b;"
        "broker = b.EmbeddedBroker(pathlib.Path(sys.argv[1])); broker.start();"
        "print(broker._process.pid, flush=True); sys.stdin.read()"
    )
    starter = subprocess.Popen(
        [sys.executable, "-P", "-c", program, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    assert starter.stdin is not None
    server = psutil.Process(int(starter.stdout.readline()))
    assert "valkey-server" in server.name()
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    starter.stdin.close()
    wait_until(lambda: not server.is_running(), timeout_s=10, description="the broker ended")
    assert find_running(tmp_path) is None
