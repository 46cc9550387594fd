from pathlib import Path

import pytest

from tasks.data.read_policy import ANYWHERE, DeniedError, ReadPolicy


def test_without_roots_everything_may_be_read(tmp_path: Path) -> None:
    ReadPolicy().resolved(tmp_path)
    ReadPolicy().check_url("s3://any/thing")


def test_links_are_resolved_before_the_check(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "opened").mkdir()
    (tmp_path / "secret").write_text("")
    (tmp_path / "open" / "link").symlink_to(tmp_path / "secret")
    access = ReadPolicy(roots=(str(tmp_path / "open"), "s3://bucket"))
    access.resolved(tmp_path / "open" / "nowhere.png")
    for name in ("secret", "open/link", "open/../secret", "opened/a.png", ""):
        with pytest.raises(DeniedError, match="TRAINING_DATA_ROOTS"):
            access.resolved(tmp_path / name)


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("s3://bucket/people", True),
        ("s3://bucket/people/a.png", True),
        ("s3://bucket/people2/a.png", False),
        ("s3://bucket", False),
        ("s3://other/people/a.png", False),
        ("gs://bucket/people/a.png", False),
        ("s3://bucket/people/../secret", False),
    ],
)
def test_an_object_must_be_below_a_root(url: str, may: bool) -> None:
    access = ReadPolicy(roots=("/images", "s3://bucket/people/"))
    if may:
        access.check_url(url)
    else:
        with pytest.raises(DeniedError):
            access.check_url(url)


def test_empty_roots_allow_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeniedError):
        ReadPolicy(roots=()).resolved(tmp_path)
    anywhere = ReadPolicy(roots=tuple(ANYWHERE.split(",")))
    anywhere.resolved(tmp_path)
    for url in ("s3://any/thing", "gs://any/thing", "az://any/thing"):
        anywhere.check_url(url)


def test_narrowed_rules_allow_what_both_allow(tmp_path: Path) -> None:
    for name in ("all/open", "all/shut", "other"):
        (tmp_path / name).mkdir(parents=True)
    access = ReadPolicy(
        roots=(f"{tmp_path}/all", "s3://bucket/people"),
        hosts=frozenset({"intern.example", "other.example:8443"}),
        max_bytes=7,
    )
    roots = (f"{tmp_path}/all/open", f"{tmp_path}/other", "s3://bucket/people/a", "s3://more")
    less = access.narrowed((*roots, "https://other.example:8443/x"))
    less.resolved(tmp_path / "all" / "open" / "a.png")
    less.check_url("s3://bucket/people/a/1.png")
    for name in ("all/shut/a.png", "other/a.png"):
        with pytest.raises(DeniedError):
            less.resolved(tmp_path / name)
    for url in ("s3://bucket/people/b", "s3://more/x"):
        with pytest.raises(DeniedError):
            less.check_url(url)
    assert (less.hosts, less.max_bytes) == (frozenset({"other.example:8443"}), 7)


def test_rules_narrowed_to_nothing_allow_nothing(tmp_path: Path) -> None:
    less = ReadPolicy(hosts=frozenset({"intern.example"})).narrowed(())
    assert less.hosts == frozenset()
    with pytest.raises(DeniedError):
        less.resolved(tmp_path)
    with pytest.raises(DeniedError):
        less.check_url("s3://any/thing")
