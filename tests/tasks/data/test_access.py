from pathlib import Path

import pytest

from tasks.data.access import ANYWHERE, Access, DeniedError


def test_without_roots_everything_may_be_read(tmp_path: Path) -> None:
    Access().check_path(tmp_path)
    Access().check_cloud("s3://any/thing")


def test_a_path_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "opened").mkdir()
    (tmp_path / "secret").write_text("")
    (tmp_path / "open" / "link").symlink_to(tmp_path / "secret")
    access = Access(roots=(str(tmp_path / "open"), "s3://bucket"))
    access.check_path(tmp_path / "open" / "nowhere.png")
    for name in ("secret", "open/link", "open/../secret", "opened/a.png", ""):
        with pytest.raises(DeniedError, match="TRAINING_DATA_ROOTS"):
            access.check_path(tmp_path / name)


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
def test_an_object_must_lie_below_a_prefix(url: str, may: bool) -> None:
    access = Access(roots=("/pictures", "s3://bucket/people/"))
    if may:
        access.check_cloud(url)
    else:
        with pytest.raises(DeniedError):
            access.check_cloud(url)


def test_no_roots_at_all_is_nowhere_and_there_is_a_word_for_anywhere(tmp_path: Path) -> None:
    with pytest.raises(DeniedError):
        Access(roots=()).check_path(tmp_path)
    anywhere = Access(roots=tuple(ANYWHERE.split(",")))
    anywhere.check_path(tmp_path)
    for url in ("s3://any/thing", "gs://any/thing", "az://any/thing"):
        anywhere.check_cloud(url)
