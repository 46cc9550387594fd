import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from tasks.events import Event, Note
from tests.worker.trainer.runs import CACHED, Images, config_of, run_train
from worker.trainer.compute.determinism import Determinism
from worker.trainer.compute.kernels import (
    attention_kernels,
    float32_precision,
    set_kernels,
    use_kernels,
)

CPU = torch.device("cpu")
CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
REST = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
NEW, OLD = 92000, 91500


@pytest.fixture
def restored_kernels() -> Iterator[None]:
    yield
    set_kernels([FLASH, *REST, CUDNN], "highest")


def kernels_in_use() -> list[SDPBackend]:
    """Return the attention kernels that PyTorch may use, in its order."""
    found: Any = torch.nn.attention._cur_sdpa_kernel_backends
    return [kernel for kernel in found(with_priority=True) if kernel in (CUDNN, FLASH, *REST)]


@pytest.mark.parametrize(
    ("capability", "cudnn", "deterministic", "kernels"),
    [
        ((7, 5), NEW, True, REST),  # T4
        ((7, 5), NEW, False, REST),
        ((8, 0), NEW, True, [FLASH, *REST]),  # A100
        ((8, 0), NEW, False, [FLASH, *REST]),
        ((8, 9), NEW, False, [FLASH, *REST]),  # RTX 4090
        ((9, 0), NEW, True, [FLASH, *REST]),  # H100
        ((9, 0), NEW, False, [CUDNN, FLASH, *REST]),
        ((9, 0), OLD, False, [FLASH, *REST]),
        ((10, 0), NEW, False, [FLASH, *REST]),  # B200
        ((12, 0), NEW, False, [FLASH, *REST]),  # RTX 5090
    ],
)
def test_attention_kernels_of_each_card(
    capability: tuple[int, int], cudnn: int, deterministic: bool, kernels: list[SDPBackend]
) -> None:
    assert attention_kernels(capability, cudnn, deterministic=deterministic) == kernels


def test_float32_runs_use_tf32_where_the_card_has_it() -> None:
    assert float32_precision((8, 0), is_float32=True) == "high"
    assert float32_precision((8, 0), is_float32=False) == "highest"
    assert float32_precision((7, 5), is_float32=True) == "highest"


@pytest.mark.usefixtures("restored_kernels")
def test_each_request_replaces_the_kernels_of_the_last() -> None:
    set_kernels([CUDNN, FLASH, *REST], "high")
    assert kernels_in_use() == [CUDNN, FLASH, *REST]
    assert torch.get_float32_matmul_precision() == "high"
    set_kernels(REST, "highest")
    assert kernels_in_use() == REST
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_cpu_keeps_its_kernels() -> None:
    torch.set_float32_matmul_precision("highest")
    assert use_kernels(CPU, deterministic=True, is_float32=True) == {"device": "cpu"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_resume_with_other_kernels_is_not_exact() -> None:
    events: list[Event] = []
    determinism = Determinism(events.append, device=CPU)
    determinism.resume("", {"device": "cpu"})
    assert determinism.problem is None
    determinism.resume("", {"device": "NVIDIA H100", "attention": "cudnn, flash"})
    assert determinism.problem == (
        "the run resumed with other kernels: device NVIDIA H100 became cpu; "
        "attention cudnn, flash became none"
    )
    [note] = events
    assert isinstance(note, Note)
    assert note.level == "warning"
    # The problem stays the run's.
    later = Determinism(events.append, device=CPU)
    later.resume(str(determinism.problem), {"device": "cpu"})
    assert later.problem == determinism.problem


def test_the_state_and_the_result_name_the_kernels(tiny_flux: Path, data: Images) -> None:
    run = run_train(data, config_of(tiny_flux, **CACHED, max_train_steps=1))
    assert run.done.kernels == {"device": "cpu"}
    state = run.path(run.checkpoints[-1].state_key).read_bytes()
    length = int.from_bytes(state[:8], "little")
    metadata = json.loads(state[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata["kernels"]) == {"device": "cpu"}
