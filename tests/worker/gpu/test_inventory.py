import pytest

from routing.classes import MemoryClass
from worker.errors import InventoryError
from worker.gpu.inventory import chosen_gpu, declared_gpus, find_gpus


def test_a_declared_inventory_is_emulated() -> None:
    big, small = declared_gpus("40gb, 24GB")
    assert (big.uuid, big.memory_class, big.emulated) == ("EMULATED-40gb-0", MemoryClass.GB40, True)
    assert (small.uuid, small.memory_class) == ("EMULATED-24gb-1", MemoryClass.GB24)


@pytest.mark.parametrize("declaration", ["41gb", "40gb,huge", "gb"])
def test_an_inventory_that_is_none_names_its_bad_entry(declaration: str) -> None:
    with pytest.raises(InventoryError, match="is no memory class; the classes are 8gb"):
        find_gpus(declaration)


def test_a_gpu_is_found_by_its_uuid_or_told_what_there_is() -> None:
    assert chosen_gpu("EMULATED-40gb-0", "40gb").memory_class == MemoryClass.GB40
    with pytest.raises(InventoryError, match="no GPU GPU-1 here; there is: EMULATED-40gb-0"):
        chosen_gpu("GPU-1", "40gb")


def test_auto_is_the_only_gpu_there_is() -> None:
    assert chosen_gpu("auto", "40gb").uuid == "EMULATED-40gb-0"
    with pytest.raises(InventoryError, match="one GPU, and there is: EMULATED-40gb-0, EMUL"):
        chosen_gpu("auto", "40gb,24gb")
    with pytest.raises(InventoryError, match="one GPU, and there is: none"):
        chosen_gpu("auto", "")
