from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.trainer.invoke.library import PYTHON, WHY_SKIPPED, Library
from worker.trainer.tiny_models import build_tiny_flux


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """The real library; skips the test if it is not installed."""
    if PYTHON is None:
        pytest.skip(WHY_SKIPPED)
    library = Library(tmp_path_factory.mktemp("library"))
    yield library
    library.close()


@pytest.fixture(scope="session")
def deep_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FLUX with the number of blocks that the library's own kohya writer expects."""
    folder = tmp_path_factory.mktemp("deep-flux")
    return build_tiny_flux(folder, double_blocks=19, single_blocks=38)


@pytest.fixture(scope="session")
def unguided_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FLUX without guidance, like FLUX.1-schnell."""
    folder = tmp_path_factory.mktemp("unguided-flux")
    return build_tiny_flux(folder, double_blocks=1, guidance_embeds=False)
