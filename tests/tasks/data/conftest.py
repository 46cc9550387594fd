from collections.abc import Iterator

import pytest

from tests.tasks.data.hub_site import Hub, running_hub
from tests.tasks.data.site import Site, serving


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as running:
        yield running


@pytest.fixture
def bucket(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The server as an S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{site.host}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return site


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with running_hub() as running:
        yield running
