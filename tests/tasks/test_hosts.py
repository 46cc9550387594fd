import pytest

from tasks.hosts import is_allowed_host

NAMES = ("gpu.example.org", "metrics")


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:9", "127.0.0.1:8080", "10.1.2.3", "[::1]:99", "[fe80::1]",
        "metrics:9464", "GPU.example.org",
    ],
)  # fmt: skip
def test_addresses_and_configured_names_are_allowed(host: str) -> None:
    assert is_allowed_host(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        "", ":80", "evil.example", "localhost.", "127.0.0.1.evil.example", "2130706433", "0x7f.1",
        "localhost@evil.example", "evil.example@localhost", "[::1", "metrics.evil.example",
    ],
)  # fmt: skip
def test_other_names_are_refused(host: str) -> None:
    assert not is_allowed_host(host, NAMES)
