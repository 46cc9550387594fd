"""Node with TypeScript and generators of clients, installed by npm once and kept by pytest."""

import os
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parent / "node" / "package.json"
COMPILED = (
    "--strict",
    "--skipLibCheck",
    "--target",
    "es2022",
    "--module",
    "nodenext",
    "--rewriteRelativeImportExtensions",
    "--erasableSyntaxOnly",
    "--verbatimModuleSyntax",
    "--types",
    "node",
)


class NodeFolder:
    """A folder of TypeScript files beside the installed packages."""

    def __init__(self, path: Path, packages: Path) -> None:
        self.path = path
        (path / "node_modules").symlink_to(packages / "node_modules")
        (path / "package.json").write_text('{"type": "module"}')

    def compile(self, *names: str) -> None:
        """Compile files to JavaScript beside them."""
        self.run("tsc", *COMPILED, *names)

    def run(self, tool: str, *arguments: str, **environment: str) -> str:
        """Run node, or a tool of the packages, and return what it prints."""
        command = "node" if tool == "node" else str(self.path / "node_modules/.bin" / tool)
        done = subprocess.run(
            [command, *arguments],
            cwd=self.path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def node_packages(pytestconfig: pytest.Config) -> Path:
    """The folder of the packages; skips without node, npm or its registry."""
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("node and npm are not installed")
    assert pytestconfig.cache is not None
    digest = sha256(PACKAGES.read_bytes()).hexdigest()[:12]
    folder = pytestconfig.cache.mkdir("node") / digest
    if not folder.exists():
        # Other processes of this run may do the same.
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as made:
            new = Path(made) / "packages"
            new.mkdir()
            shutil.copy(PACKAGES, new)
            options = ("--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund")
            done = subprocess.run(
                ["npm", "install", *options], cwd=new, capture_output=True, text=True, check=False
            )
            if done.returncode:
                pytest.skip(f"npm cannot install the packages: {done.stderr.strip()[:300]}")
            if not folder.exists():
                new.rename(folder)
    return folder


@pytest.fixture
def node(node_packages: Path, tmp_path: Path) -> NodeFolder:
    """A folder for TypeScript files."""
    path = tmp_path / "node"
    path.mkdir()
    return NodeFolder(path, node_packages)
