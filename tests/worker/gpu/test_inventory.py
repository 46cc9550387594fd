import pytest

from routing.classes import MemoryClass
from worker.errors import InventoryError
from worker.gpu.inventory import choose_gpu, declared_gpus, find_gpus


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
