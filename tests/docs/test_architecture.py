"""The architecture page names modules and Redis keys that exist, and all that it claims to list."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.reference import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PACKAGES = ("routing", "tasks", "worker", "console")
KEY = re.compile(r"""["'`](training:[a-z_:]*)""")
MODULE = re.compile(r"`((?:routing|tasks|worker|console|tests|deploy|docs)/[\w./-]*)`")
FAMILIES = ("flux", "sdxl")
WITHOUT_FAMILY = {
    "console/api/jobs.py": "an example in the API's description",
    "console/pages/form/controls.py": "order of the options' names",
    "console/pages/form/draft.py": "the data loader of the form's first type",
    "console/pages/site.py": "the form's first type",
    "tasks/schemas/typescript.py": "the form's types are those of FLUX",
    "worker/cli/commands/catalog.py": "examples in help",
    "worker/cli/local_runs.py": "what the demo shows",
    "worker/local/demo.py": "the job of the demo",
    "worker/maintenance/reach.py": "the gated model whose access is checked",
    "worker/training_worker.py": "the names of the plan",
    "worker/local/local_fleet.py": "which of its jobs a fleet's GPUs hold",
    "worker/miniature/images.py": "the folders of the models of the demo and of tests",
    "worker/trainer/miniature/flux.py": "how one of them was made",
    "worker/trainer/miniature/sdxl.py": "how the other was made",
}
"""Modules that name a family and need no change for another one, with the reason."""


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_every_redis_key_is_documented() -> None:
    scripts = [path for package in PACKAGES for path in (ROOT / package).rglob("*.lua")]
    texts = [path.read_text("utf-8") for path in [*sources(), *scripts]]
    used = {key.rstrip(":") for text in texts for key in KEY.findall(text)}
    documented = {key.rstrip(":") for key in KEY.findall(PAGE)}
    assert used <= documented
    assert {key for key in documented if not any(it.startswith(key) for it in used)} == set()


@pytest.mark.parametrize(
    "page",
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_page_names_files_that_exist(page: Path) -> None:
    for name in MODULE.findall(page.read_text("utf-8")):
        if "FAMILY" not in name and "NAME" not in name and "..." not in name:
            assert (ROOT / name).exists() or name == "deploy/secrets", name


def test_model_family_needs_only_the_listed_files() -> None:
    section = PAGE.partition("## Adding a model family")[2].partition("\n## ")[0]
    listed = {name for name in MODULE.findall(section) if "FAMILY" not in name}
    own = {f"tasks/jobs/{family}.py" for family in ("flux_lora", "sdxl")}
    own |= {f"worker/trainer/{family}/" for family in FAMILIES}
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        if any(family in text for family in FAMILIES for text in words_of(path)):
            known = name in WITHOUT_FAMILY or any(name.startswith(it) for it in listed | own)
            assert known, f"{name} names a model family; list it in docs/architecture.md"


def words_of(path: Path) -> set[str]:
    """Names and strings of a module, without its docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = list(ast.walk(tree))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    words = set()
    for node in nodes:
        texts = [getattr(node, field, None) for field in ("id", "name", "attr", "arg", "module")]
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            texts.append(node.value)
        words |= {text.lower() for text in texts if isinstance(text, str)}
    return words
