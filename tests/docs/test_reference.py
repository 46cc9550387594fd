import re
from pathlib import Path

import pytest

from tasks.errors import ErrorCode
from tasks.settings.settings import DEPLOYMENT_VARIABLES, Settings
from tests.docs.reference import FOLDER, PAGES, REMEDIES, ROOT


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_current(name: str) -> None:
    page = (FOLDER / name).read_text("utf-8")
    assert page == PAGES[name](), f"{name} is stale; run: python -m tests.docs.reference"


def test_every_reference_page_is_generated() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)


def test_every_error_has_a_remedy() -> None:
    assert set(REMEDIES) == set(ErrorCode)


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_page_names_only_settings_that_exist(page: Path) -> None:
    # An argument of a command, a table of the trainer.
    own = DEPLOYMENT_VARIABLES | {"TRAINING_TYPE", "TRAINING_TYPES"}
    existing = {f"TRAINING_{name.upper()}" for name in Settings.model_fields} | own
    assert set(re.findall(r"\bTRAINING_[A-Z0-9_]+\b", page.read_text("utf-8"))) <= existing
