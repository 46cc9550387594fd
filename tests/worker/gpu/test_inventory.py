import pytest

from routing.classes import MemoryClass
from worker.errors import InventoryError
from worker.gpu.inventory import (
    TorchBuild,
    choose_gpu,
    declared_gpus,
    find_gpus,
    torch_build,
    why_unsupported,
)

CUDA_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


def test_a_declared_inventory_is_emulated() -> None:
    big, small = declared_gpus("40gb, 24GB")
    assert (big.uuid, big.memory_class, big.emulated) == ("EMULATED-40gb-0", MemoryClass.GB40, True)
    assert (small.uuid, small.memory_class) == ("EMULATED-24gb-1", MemoryClass.GB24)


@pytest.mark.parametrize("declaration", ["41gb", "40gb,huge", "gb"])
def test_an_invalid_inventory_names_the_bad_entry(declaration: str) -> None:
    with pytest.raises(InventoryError, match="is not a memory class; use 8gb"):
        find_gpus(declaration)


def test_a_gpu_is_chosen_by_its_uuid() -> None:
    assert choose_gpu("EMULATED-40gb-0", "40gb").memory_class == MemoryClass.GB40
    with pytest.raises(InventoryError, match="has no GPU GPU-1; it has: EMULATED-40gb-0"):
        choose_gpu("GPU-1", "40gb")


def test_auto_chooses_the_only_gpu() -> None:
    assert choose_gpu("auto", "40gb").uuid == "EMULATED-40gb-0"
    with pytest.raises(InventoryError, match="one GPU; this machine has: EMULATED-40gb-0, EMUL"):
        choose_gpu("auto", "40gb,24gb")
    with pytest.raises(InventoryError, match="one GPU; this machine has: none"):
        choose_gpu("auto", "")


@pytest.mark.parametrize(
    ("capability", "architectures", "problem"),
    [
        ((8, 0), CUDA_13, None),
        ((8, 9), CUDA_13, None),
        ((10, 3), CUDA_13, None),
        ((13, 0), CUDA_13, None),
        ((7, 0), CUDA_13, "kernels for sm_75, sm_80"),
        ((7, 5), CUDA_13, "jobs compute in bfloat16, which needs 8.0"),
        ((7, 5), (), "jobs compute in bfloat16, which needs 8.0"),
        ((9, 0), ("sm_80", "sm_86"), "kernels for sm_80, sm_86 only"),
        ((8, 0), ("sm_86",), "kernels for sm_86 only"),
        ((9, 0), ("sm_80", "compute_80"), None),
        ((9, 0), ("sm_90a",), None),
        ((10, 0), ("compute_90a",), "kernels for compute_90a only"),
        ((10, 3), ("sm_100f",), None),
        ((12, 0), ("compute_100f",), "kernels for compute_100f only"),
        (None, CUDA_13, None),
    ],
)
def test_a_gpu_without_kernels_or_bfloat16_is_unsupported(
    capability: tuple[int, int] | None, architectures: tuple[str, ...], problem: str | None
) -> None:
    found = why_unsupported(capability, TorchBuild("13.0", architectures))
    assert (found is None) == (problem is None)
    assert (problem or "") in (found or "")


def test_pytorch_is_described_without_importing_it() -> None:
    build = torch_build()
    assert build is not None
    assert (build.cuda is None) == (build.architectures == ())
    assert torch_build("/nowhere/python") is None
