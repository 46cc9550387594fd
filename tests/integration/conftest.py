from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleets import Fleet, free_port
from tests.otlp import Receiver, receiving
from tests.worker.trainer.caption_models import build_florence2
from worker.miniature.dataset import draw_dataset
from worker.trainer.tiny_models import build_tiny_flux, build_tiny_sdxl


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_flux(tmp_path_factory.mktemp("model") / "tiny-flux")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sdxl(tmp_path_factory.mktemp("model") / "tiny-sdxl")


@pytest.fixture(scope="session")
def caption_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_florence2(tmp_path_factory.mktemp("model") / "tiny-florence")


@pytest.fixture(scope="session")
def traces() -> Iterator[Receiver]:
    """The collector of the shared fleet's traces."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, traces: Receiver) -> Iterator[Fleet]:
    """An emulated 40 GB worker and a 24 GB one, the web console, metrics and traces, shared by the
    tests that leave it whole.
    """
    settings = {
        "TRAINING_CONSOLE_PORT": str(free_port()),
        "TRAINING_METRICS_PORT": str(free_port()),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": traces.url,
    }
    with Fleet(tmp_path_factory.mktemp("fleet"), "40gb,24gb", **settings) as running:
        yield running


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    draw_dataset(folder)
    return folder


@pytest.fixture
def job(tiny_model: Path, images: Path) -> dict[str, Any]:
    return short_job(tiny_model, images)


def short_job(tiny_model: Path, images: Path) -> dict[str, Any]:
    """A FLUX LoRA job that takes a few seconds."""
    return {
        "name": "shapes",
        "training": {
            "type": "FLUX_LORA",
            "model": str(tiny_model),
            "seed": 7,
            "max_train_steps": 12,
            "save_every_n_steps": 4,
            "train_batch_size": 2,
            "weight_dtype": "bfloat16",
            "t5_tokenizer_max_length": 32,
            "cache_text_encoder_outputs": True,
            "cache_vae_outputs": True,
            "data_loader": {
                "type": "IMAGE_CAPTION_FLUX_DATA_LOADER",
                "resolution": 64,
                "aspect_ratio_buckets": {
                    "target_resolution": 64,
                    "start_dim": 32,
                    "end_dim": 128,
                    "divisible_by": 16,
                },
                "dataset": {
                    "type": "IMAGE_CAPTION_DIR_DATASET",
                    "dataset_dir": str(images),
                },
            },
        },
    }
