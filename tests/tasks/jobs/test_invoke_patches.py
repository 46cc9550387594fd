from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.jobs.invoke_patches import REPAIRS, parse_repairs
from tasks.settings.settings import Settings

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "invoke-training.md"


def test_all_or_none_or_all_but_some_are_made() -> None:
    assert parse_repairs("all") == set(REPAIRS)
    assert parse_repairs("none") == set()
    assert parse_repairs("-noise, -buckets") == set(REPAIRS) - {"noise", "buckets"}


@pytest.mark.parametrize("text", ["", "noise", "-noise,-nose", "none,-noise", "all,none"])
def test_what_names_no_repairs_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="the names are cached_latents"):
        parse_repairs(text)
    with pytest.raises(ValidationError, match="invoke_patches"):
        Settings(invoke_patches=text)


def test_the_guide_names_all_repairs() -> None:
    guide = GUIDE.read_text("utf-8")
    for name, repair in REPAIRS.items():
        assert f"| `{name}` |" in guide, name
        assert " ".join(repair.problem.split()) in " ".join(guide.split()), name
