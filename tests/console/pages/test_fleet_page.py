import pytest

from console.pages.fleet_page import flower_address
from tasks.settings.settings import Settings


@pytest.mark.parametrize(
    ("settings", "host", "address"),
    [
        ({}, "127.0.0.1", "http://127.0.0.1:5555"),
        ({}, "gpu.example.org", None),
        ({"flower_port": 0}, "127.0.0.1", None),
        (
            {"console_url": "https://gpu.example.org/training", "flower_prefix": "ops/flower"},
            "gpu.example.org",
            "https://gpu.example.org/ops/flower",
        ),
    ],
)
def test_flower_is_linked_where_a_browser_reaches_it(
    settings: dict[str, object], host: str, address: str | None
) -> None:
    assert flower_address(Settings.model_validate(settings), host) == address
