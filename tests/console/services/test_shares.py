import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.errors import TooManyError
from console.services.shares import AccountCache, Share


def take_all(share: Share, account: str) -> int:
    """Take until the account's share is used up."""
    for taken in range(10_000):
        try:
            share.take(account)
        except TooManyError:
            return taken
    raise AssertionError("the share has no limit")


def test_an_account_gets_as_many_as_remain_free() -> None:
    share = Share("streams", 100)
    assert take_all(share, "one") == 50
    assert take_all(share, "two") == 25
    for _ in range(30):
        share.give_back("one")
    assert take_all(share, "two") == 15


def test_a_refusal_names_the_share_and_the_time_to_retry() -> None:
    share = Share("streams", 10, retry_after_s=7)
    take_all(share, "one")
    with (
        pytest.raises(TooManyError, match="this account has 5 streams") as refused,
        share.hold("one"),
    ):
        """Do nothing."""
    assert refused.value.retry_after_s == 7


def test_things_of_different_sizes_share_a_capacity() -> None:
    share = Share("bytes", 1000, always=0)
    with share.hold("one", 500):
        with pytest.raises(TooManyError):
            share.take("one")
        share.take("two", 250)
    share.take("one", 370)


@given(st.lists(st.sampled_from("abcdef"), max_size=300))
def test_no_account_takes_what_another_one_needs(takers: list[str]) -> None:
    share, held = Share("streams", 20, always=2), dict.fromkeys("abcdef", 0)
    for account in takers:
        try:
            share.take(account)
        except TooManyError:
            continue
        held[account] += 1
    assert sum(held.values()) <= 20 + 2 * len(held)
    assert max(held.values()) <= 10
    assert take_all(share, "late") >= 2
    for account, count in held.items():
        for _ in range(count):
            share.give_back(account)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=200))
def test_a_cache_discards_the_oldest_value_of_its_own_account(adds: list[tuple[str, int]]) -> None:
    discarded: list[tuple[str, int]] = []
    cache = AccountCache[tuple[str, int]](3, discarded.append)
    kept: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for number, (account, use) in enumerate(adds):
        if use in kept[account]:
            assert cache.get(str(use)) == (account, use)
            kept[account].remove(use)
            kept[account].append(use)
        cache.add(account, str(number), (account, number))
        kept[account].append(number)
        if len(kept[account]) > 3:
            assert discarded[-1] == (account, kept[account].pop(0))
    for account, numbers in kept.items():
        assert cache.of(account) == [(account, number) for number in numbers]
        for number in numbers:
            assert cache.pop(str(number)) == (account, number)
        assert cache.of(account) == []
    assert cache.get("0") is None
    assert cache.pop("0") is None
