import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from routing.queues import ALL_QUEUES
from tasks.process.parent_death import end_with_parent
from tasks.state.connection import connect
from tasks.state.job_store import JobStore
from worker.local.embedded_broker import EmbeddedBroker

pytest_plugins = ["pytester", "tests.node_tools", "tests.reruns"]
# Before torch is imported, here and in every child process: small tensors are ten times slower with
# several threads on a busy machine, and no test may reach the Hub.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

# Fixtures of a session are made with it too.
os.umask(0o022)

_SLOW = {
    "integration",
    "chaos",
    "trainer",
    "test_broken_connections.py",
    "test_datasets.py",
    "test_images_in_browser.py",
}


def pytest_configure(config: pytest.Config) -> None:
    """End the processes of a distributed run when pytest is killed."""
    if hasattr(config, "workerinput") and sys.platform == "linux":
        end_with_parent()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no process is left with them at the end."""
    items.sort(key=lambda item: not _SLOW & set(item.path.parts))


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """The usual umask for each test: commands set that of their process, which tests share."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real broker of this test session's own."""
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker.url


@pytest.fixture
def redis_client(broker_url: str) -> Iterator[Redis]:
    """A connection to an empty broker."""
    client = connect(broker_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def state(redis_client: Redis) -> JobStore:
    """Jobs of a fleet that has room for all."""
    redis_client.hset("training:fleet", mapping={f"room:{queue}": 1000 for queue in ALL_QUEUES})
    redis_client.expire("training:fleet", 3600)
    return JobStore(redis_client, timedelta(hours=1))


@pytest.fixture
def job_document(tmp_path: Path) -> dict[str, Any]:
    """A job that validates; its dataset and model do not exist."""
    return {
        "name": "lamp",
        "preset": "flux_lora_1x40gb",
        "training": {
            "model": str(tmp_path / "model"),
            "data_loader": {
                "dataset": {
                    "type": "IMAGE_CAPTION_DIR_DATASET",
                    "dataset_dir": str(tmp_path / "images"),
                }
            },
        },
    }
