"""What the tests of pages share."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.integration.browsers import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running browser."""
    with chromium() as running:
        yield running
