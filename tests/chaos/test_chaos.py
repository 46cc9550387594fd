"""A few runs with a fixed seed; ``python -m tests.chaos`` makes any number of runs."""

import random
from collections.abc import Iterator

import pytest

from tests.chaos import fuzz
from tests.chaos.__main__ import prepare
from tests.chaos.cluster import Cluster
from tests.chaos.faults import ALL
from tests.chaos.runs import Jobs, new_jobs, run

FAULTS = {fault.name: fault for fault in ALL}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("chaos")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> Jobs:
    return new_jobs(cluster, *prepare(cluster.folder), ranks=(4,))


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "names",
    [
        ("host killed", "delivered twice"),
        ("network cut for long", "checkpoint damaged"),
        ("submitted twice", "cancelled"),
        ("clock jumps", "ready files read-only"),
        ("thread ends",),
        ("poison in each queue", "worker killed"),
    ],
    ids=" and ".join,
)
def test_every_promise_is_kept(cluster: Cluster, jobs: Jobs, names: tuple[str, ...]) -> None:
    chance = random.Random(str(names))
    run(cluster, jobs, [FAULTS[name] for name in names], chance)


@pytest.mark.timeout(240)
def test_generated_messages_end_no_worker(cluster: Cluster, jobs: Jobs) -> None:
    result = fuzz.run(cluster, jobs, 500, random.Random(16))
    assert result.set_aside > 200
