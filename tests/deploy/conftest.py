from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.servers import Broker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Broker of the compose file, with the users that secrets.sh creates."""
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running
