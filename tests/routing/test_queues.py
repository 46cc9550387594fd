from hypothesis import given
from hypothesis import strategies as st

from routing.classes import MemoryClass, class_for
from routing.queues import (
    ALL_QUEUES,
    DIFFUSERS,
    ENGINE_QUEUES,
    INVOKE,
    SUBMIT_QUEUE,
    engine_of,
    served_queues,
    with_submit_queue,
)
from tasks import contract


def test_a_worker_serves_its_own_class_first() -> None:
    assert served_queues(MemoryClass.GB40) == ("gpu.40gb", "gpu.24gb", "gpu.16gb", "gpu.8gb")
    assert served_queues(MemoryClass.GB8) == ("gpu.8gb",)


def test_a_strict_worker_serves_its_own_class_only() -> None:
    assert served_queues(MemoryClass.GB80, strict=True) == ("gpu.80gb",)


def test_no_worker_below_40_gb_serves_flux_queues() -> None:
    for memory_class in MemoryClass:
        serves_flux = {"gpu.40gb", "gpu.80gb"} & set(served_queues(memory_class))
        assert bool(serves_flux) == (memory_class >= MemoryClass.GB40)


def test_queues_cover_the_cpu_and_each_class_and_engine() -> None:
    assert ALL_QUEUES[:6] == ("cpu", "gpu.8gb", "gpu.16gb", "gpu.24gb", "gpu.40gb", "gpu.80gb")
    assert ALL_QUEUES[6:11] == tuple(f"{queue}.invoke-training" for queue in ALL_QUEUES[1:6])
    assert engine_of("gpu.8gb.invoke-training") == INVOKE
    assert engine_of("gpu.8gb") == engine_of("cpu") == DIFFUSERS


def test_only_workers_with_an_engine_serve_its_queues() -> None:
    assert served_queues(MemoryClass.GB16, engines=[DIFFUSERS, INVOKE]) == (
        "gpu.16gb.invoke-training",
        "gpu.16gb",
        "gpu.8gb.invoke-training",
        "gpu.8gb",
    )
    assert not set(served_queues(MemoryClass.GB80)) & set(ENGINE_QUEUES)


@given(st.lists(st.integers(0, 200_000), max_size=20), st.booleans())
def test_no_card_serves_a_larger_class(fleet: list[int], strict: bool) -> None:
    for reported_mib in fleet:
        memory_class = class_for(reported_mib)
        if memory_class is None:
            continue
        first, *others = served_queues(memory_class, strict=strict)
        assert first == f"gpu.{memory_class}"
        sizes = [int(queue.removeprefix("gpu.").removesuffix("gb")) for queue in others]
        assert sizes == ([] if strict else sorted(c for c in MemoryClass if c < memory_class)[::-1])
        # FLUX jobs are in the queues of 40 GB and above.
        if reported_mib < MemoryClass.GB40.floor_mib:
            assert not {"gpu.40gb", "gpu.80gb"} & {first, *others}


def test_workers_of_the_cpu_queue_serve_submits() -> None:
    assert with_submit_queue(("cpu",)) == ("cpu", SUBMIT_QUEUE)
    assert with_submit_queue(("submit", "cpu")) == ("submit", "cpu")
    assert with_submit_queue(("gpu.8gb",)) == ("gpu.8gb",)


def test_the_contract_names_the_queue_of_submits() -> None:
    assert contract.SUBMIT_QUEUE == SUBMIT_QUEUE
