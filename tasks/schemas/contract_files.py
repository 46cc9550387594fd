"""The files of the contract, by name: what ``deploy/contract`` holds beside its guide."""

from importlib.resources import files

from tasks.schemas.form import form_file
from tasks.schemas.json_schema import schema_files
from tasks.schemas.typescript import typescript_file


def contract_files() -> dict[str, str]:
    """File name to text."""
    return {
        "contract.py": (files("tasks") / "contract.py").read_text("utf-8"),
        **schema_files(),
        "form.json": form_file(),
        "training-worker.ts": typescript_file(),
    }
