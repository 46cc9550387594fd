from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest

from tasks.data.memory_budget import MemoryBudget, map_in_threads


def test_a_larger_request_runs_exclusively() -> None:
    room, lock, held, most = MemoryBudget(10), Lock(), [0, 0], [0]

    def hold(count: int) -> None:
        with room.reserve(count):
            with lock:
                held[0] += count
                held[1] += 1
                most[0] = max(most[0], held[0] if held[1] > 1 else 0)
            with lock:
                held[0] -= count
                held[1] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [1, 5, 25, 3, 10, 7, 2, 30, 4] * 50))
    assert most[0] <= 10
    with room.reserve(10):
        pass


def test_results_are_in_order_and_a_few_ahead() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        return number

    for done, number in enumerate(map_in_threads(work, range(1000), 8)):
        assert number == done
        assert len(begun) <= done + 100
    assert sorted(begun) == list(range(1000))


def test_an_error_in_a_thread_ends_the_rest() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        return 1 // (number - 3)

    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(work, range(1000), 8))
    assert len(begun) < 200
