"""The documentation builds as pages, with every link leading somewhere."""

import subprocess
import sys
from pathlib import Path

from tests.deploy.manifests import ROOT


def test_the_pages_build_and_fetch_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    config = ["--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(tmp_path)]
    built = subprocess.run([*command, *config], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md"))) - 1
    for page in pages:
        text = page.read_text("utf-8")
        assert 'src="http' not in text, page
        assert "fonts.g" not in text, page
