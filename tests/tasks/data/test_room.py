from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from tasks.data.room import Room


def test_no_more_is_held_at_a_time_than_there_is_but_by_one_alone() -> None:
    room, lock, held, most = Room(10), Lock(), [0, 0], [0]

    def hold(count: int) -> None:
        with room.taken(count):
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
    with room.taken(10):
        pass
