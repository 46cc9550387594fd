"""Reruns of integration tests: once each, listed at the end, and too many fail the run.

Machines are noisy: a test that drives real processes may fail without a fault of the product. A
rerun is therefore allowed, but never silent.
"""

import pytest

# Noise repeats rarely. More reruns than this in one run mean a test or the product is unreliable.
MAX_RERUNS = 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each integration test be rerun once."""
    for item in items:
        if item.get_closest_marker("integration"):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the tests that were rerun."""
    reruns = terminalreporter.stats.get("rerun", [])
    if reruns:
        terminalreporter.section(f"reruns: {len(reruns)}, at most {MAX_RERUNS} are allowed")
        for report in reruns:
            terminalreporter.write_line(report.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run with too many reruns."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    too_many = reporter is not None and len(reporter.stats.get("rerun", [])) > MAX_RERUNS
    if too_many and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
