from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.fair_share import TenantShare, next_tenant, parse_tenant_shares, share_of

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
SHARES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "*"]),
    st.builds(TenantShare, st.floats(0.1, 10), st.none() | st.integers(1, 20)),
)


def test_the_tenant_with_the_lowest_load_is_next() -> None:
    assert next_tenant(["a", "b"], {"a": 2, "b": 1}, {}) == "b"
    assert next_tenant(["a", "b"], {"a": 2, "b": 1}, {"a": TenantShare(3)}) == "a"
    assert next_tenant(["a", "b"], {"b": 1}, {}) == "a"


def test_the_longest_wait_decides_ties() -> None:
    assert next_tenant(["b", "a"], {"a": 1, "b": 1}, {}) == "b"


def test_a_tenant_at_its_limit_waits_even_alone() -> None:
    assert next_tenant(["a"], {"a": 2}, {"a": TenantShare(limit=2)}) is None
    assert next_tenant(["a", "b"], {"a": 2, "b": 9}, {"a": TenantShare(limit=2)}) == "b"
    assert next_tenant(["a"], {"a": 2}, {"*": TenantShare(limit=2)}) is None
    assert next_tenant([], {}, {}) is None


@given(st.lists(NAMES, unique=True), st.dictionaries(NAMES, st.integers(0, 50)), SHARES)
def test_no_tenant_with_a_lower_load_is_skipped(
    waiting: list[str], in_flight: dict[str, int], shares: dict[str, TenantShare]
) -> None:
    def load(tenant: str) -> float:
        return in_flight.get(tenant, 0) / share_of(tenant, shares).weight

    def is_below_limit(tenant: str) -> bool:
        limit = share_of(tenant, shares).limit
        return limit is None or in_flight.get(tenant, 0) < limit

    chosen = next_tenant(waiting, in_flight, shares)
    able = [tenant for tenant in waiting if is_below_limit(tenant)]
    if chosen is None:
        assert able == []
    else:
        assert chosen in able
        assert load(chosen) == min(map(load, able))


@given(SHARES, st.integers(20, 200))
def test_tenants_that_always_wait_share_by_weight(
    shares: dict[str, TenantShare], rounds: int
) -> None:
    """The loads of no two tenants differ by more than a job."""
    shares = {name: TenantShare(share.weight) for name, share in shares.items()}
    waiting, in_flight = ["a", "b", "c"], Counter[str]()
    for _ in range(rounds):
        chosen = next_tenant(waiting, in_flight, shares)
        assert chosen is not None
        in_flight[chosen] += 1
        waiting.remove(chosen)
        waiting.append(chosen)
    weights = {name: share_of(name, shares).weight for name in waiting}
    loads = [in_flight[name] / weights[name] for name in waiting]
    assert max(loads) - min(loads) <= 1 / min(weights.values()) + 1e-9


def test_shares_are_parsed() -> None:
    assert parse_tenant_shares("acme=3, zoo=1.5:4,*=1:8,") == {
        "acme": TenantShare(3),
        "zoo": TenantShare(1.5, 4),
        "*": TenantShare(1, 8),
    }
    assert parse_tenant_shares("") == {}


@pytest.mark.parametrize("text", ["acme", "acme=0", "acme=x", "a b=1", "acme=1:", "acme=1:-2"])
def test_malformed_shares_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not tenant=weight or tenant=weight:limit"):
        parse_tenant_shares(text)


def test_a_limit_of_zero_and_repeated_tenants_are_refused() -> None:
    with pytest.raises(ValueError, match="the limit of acme is 0"):
        parse_tenant_shares("acme=1:0")
    with pytest.raises(ValueError, match="acme has two shares"):
        parse_tenant_shares("acme=1,acme=2")


@given(st.permutations("abcde"), st.dictionaries(NAMES, st.integers(0, 5)))
def test_equal_shares_change_nothing(waiting: list[str], in_flight: dict[str, int]) -> None:
    equal = {"*": TenantShare()}
    assert next_tenant(waiting, in_flight, {}) == next_tenant(waiting, in_flight, equal)
