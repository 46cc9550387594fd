import asyncio
import threading

from console.services.threads import current_account, in_thread


def test_blocked_calls_of_one_account_leave_threads_for_others() -> None:
    over, began = threading.Event(), threading.Semaphore(0)

    @in_thread
    def block() -> bool:
        began.release()
        return over.wait(30)

    @in_thread
    def answer() -> str:
        return threading.current_thread().name

    async def use() -> None:
        current_account.set("tenant acme")
        blocked = [asyncio.create_task(block()) for _ in range(50)]
        for _ in range(8):
            await asyncio.to_thread(began.acquire)
        for account in ("tenant zoo", None):
            current_account.set(account)
            assert await asyncio.wait_for(answer(), 10)
        assert not began.acquire(blocking=False)
        over.set()
        assert all(await asyncio.gather(*blocked))

    asyncio.run(use())
