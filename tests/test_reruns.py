import pytest

# Fails at its first run, passes at its second one.
NOISY = """
import pytest
runs = []

@pytest.mark.integration
@pytest.mark.parametrize("number", range({count}))
def test_noisy(number):
    runs.append(number)
    assert runs.count(number) == 2
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\nmarkers = integration: starts processes\n")
    pytester.makeconftest('pytest_plugins = ["tests.reruns"]')
    return pytester


def test_reruns_are_listed(run: pytest.Pytester) -> None:
    run.makepyfile(NOISY.format(count=3))
    result = run.runpytest_subprocess("-n", "2")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*reruns: 3, at most 3*", "*test_noisy?0?", "*3 passed, 3 rerun*"])


def test_too_many_reruns_fail_the_run(run: pytest.Pytester) -> None:
    run.makepyfile(NOISY.format(count=4))
    result = run.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*4 passed, 4 rerun*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_other_tests_are_not_rerun(run: pytest.Pytester) -> None:
    run.makepyfile(NOISY.format(count=1).replace("@pytest.mark.integration\n", ""))
    result = run.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*reruns: *")
