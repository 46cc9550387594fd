import pytest

from routing.classes import MemoryClass, class_for, smallest_class_holding

# What drivers report of real cards, in MiB, and the class each was sold as.
REPORTED = [
    ("Tesla P4", 7680, 8),
    ("Tesla K80, one die", 11439, 8),
    ("GeForce RTX 2080 Ti", 11264, 8),
    ("GeForce RTX 3060 12GB", 12288, 8),
    ("Tesla T4, ECC on", 15360, 16),
    ("Tesla V100 16GB", 16160, 16),
    ("Tesla P100 16GB", 16280, 16),
    ("GeForce RTX 4060 Ti 16GB", 16380, 16),
    ("RTX A4000", 16376, 16),
    ("A10, ECC on", 22731, 24),
    ("A10, ECC off", 24564, 24),
    ("A10G", 23028, 24),
    ("A30", 24576, 24),
    ("GeForce RTX 3090", 24268, 24),
    ("GeForce RTX 4090", 24564, 24),
    ("GeForce RTX 5090", 32607, 24),
    ("A100 40GB", 40960, 40),
    ("L40", 46068, 40),
    ("RTX A6000", 48685, 40),
    ("RTX 6000 Ada", 49140, 40),
    ("A100 80GB", 81920, 80),
    ("H100 NVL", 95830, 80),
    ("H20 96GB", 97871, 80),
    ("H200", 143771, 80),
    ("MIG 1g.10gb of an A100-80", 9728, 8),
    ("MIG 3g.20gb of an A100-40", 20096, 16),
    ("MIG 3g.40gb of an H100", 40320, 40),
]


@pytest.mark.parametrize(("card", "reported_mib", "expected"), REPORTED)
def test_no_real_card_is_misplaced(card: str, reported_mib: int, expected: int) -> None:
    assert class_for(reported_mib) == MemoryClass(expected), card


@pytest.mark.parametrize("reported_mib", [0, 4864, 5836])
def test_a_card_or_slice_below_all_classes_has_none(reported_mib: int) -> None:
    assert class_for(reported_mib) is None


@pytest.mark.parametrize("memory_class", MemoryClass)
def test_a_job_counts_on_the_floor_of_a_class_and_not_on_a_mib_more(
    memory_class: MemoryClass,
) -> None:
    assert class_for(memory_class.floor_mib) == memory_class
    assert class_for(memory_class.floor_mib - 1) != memory_class
    assert smallest_class_holding(memory_class.floor_gib) == memory_class
    above = smallest_class_holding(memory_class.floor_gib + 1 / 1024)
    assert above is None or above > memory_class
