import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.worker.trainer.runs import Images, images
from worker.trainer.tiny_models import build_tiny_flux, build_tiny_sdxl


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread, as trainer processes do: numbers are compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # Every run collects garbage; freeze the objects that the libraries made on import.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FLUX with both kinds of block."""
    folder = tmp_path_factory.mktemp("tiny-flux")
    return build_tiny_flux(folder, double_blocks=1, single_blocks=1)


@pytest.fixture(scope="session")
def double_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny FLUX of the demonstration, whose kohya files diffusers reads."""
    return build_tiny_flux(tmp_path_factory.mktemp("double-flux"))


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL."""
    return build_tiny_sdxl(tmp_path_factory.mktemp("tiny-sdxl"))


@pytest.fixture
def data(tmp_path: Path) -> Images:
    """Five images of various shapes in their own store."""
    return images(tmp_path)
