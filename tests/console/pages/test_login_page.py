import pytest

from console.login import inside


@pytest.mark.parametrize("target", ["/jobs", "/new?draft=abc", "/jobs/a-b.c?x=1"])
def test_who_logged_in_comes_to_the_page_that_was_asked_for(target: str) -> None:
    assert inside(target) == target


@pytest.mark.parametrize(
    "target",
    [
        "",
        "jobs",
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "/a\nb",
        "javascript:1",
    ],
)
def test_nobody_is_led_elsewhere(target: str) -> None:
    assert inside(target) == "/"
