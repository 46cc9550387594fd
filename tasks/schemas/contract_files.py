"""The generated files of the contract, as in ``deploy/contract``."""

from importlib.resources import files

from tasks.schemas.form import form_file
from tasks.schemas.json_schema import schema_files
from tasks.schemas.typescript import typescript_file


def contract_files() -> dict[str, str]:
    """Return each file's text by its name."""
    return {
        "contract.py": (files("tasks") / "contract.py").read_text("utf-8"),
        "client.py": (files("tasks.schemas") / "client.py").read_text("utf-8"),
        "client.ts": (files("tasks.schemas") / "client.ts").read_text("utf-8"),
        **schema_files(),
        "form.json": form_file(),
        "training-worker.ts": typescript_file(),
    }
