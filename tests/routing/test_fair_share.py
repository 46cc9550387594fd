from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.fair_share import TenantShare, next_tenant, parse_tenant_shares, share_of

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
TERMS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "*"]),
    st.builds(TenantShare, st.floats(0.1, 10), st.none() | st.integers(1, 20)),
)


def test_the_tenant_with_the_fewest_jobs_in_flight_for_its_weight_is_next() -> None:
    assert next_tenant(["a", "b"], {"a": 2, "b": 1}, {}) == "b"
    assert next_tenant(["a", "b"], {"a": 2, "b": 1}, {"a": TenantShare(3)}) == "a"
    assert next_tenant(["a", "b"], {"b": 1}, {}) == "a"


def test_among_equals_the_one_that_has_waited_longest_for_a_turn_is_next() -> None:
    assert next_tenant(["b", "a"], {"a": 1, "b": 1}, {}) == "b"


def test_a_tenant_at_its_limit_waits_even_alone() -> None:
    assert next_tenant(["a"], {"a": 2}, {"a": TenantShare(limit=2)}) is None
    assert next_tenant(["a", "b"], {"a": 2, "b": 9}, {"a": TenantShare(limit=2)}) == "b"
    assert next_tenant(["a"], {"a": 2}, {"*": TenantShare(limit=2)}) is None
    assert next_tenant([], {}, {}) is None


@given(st.lists(NAMES, unique=True), st.dictionaries(NAMES, st.integers(0, 50)), TERMS)
def test_nobody_with_less_for_its_weight_is_passed_over(
    waiting: list[str], in_flight: dict[str, int], terms: dict[str, TenantShare]
) -> None:
    def load(tenant: str) -> float:
        return in_flight.get(tenant, 0) / share_of(tenant, terms).weight

    def may(tenant: str) -> bool:
        limit = share_of(tenant, terms).limit
        return limit is None or in_flight.get(tenant, 0) < limit

    chosen = next_tenant(waiting, in_flight, terms)
    able = [tenant for tenant in waiting if may(tenant)]
    if chosen is None:
        assert able == []
    else:
        assert chosen in able
        assert load(chosen) == min(map(load, able))


@given(TERMS, st.integers(20, 200))
def test_tenants_that_always_wait_share_by_weight(
    terms: dict[str, TenantShare], turns: int
) -> None:
    """No two are ever more than a job apart, for their weights."""
    terms = {name: TenantShare(its.weight) for name, its in terms.items()}
    waiting, in_flight = ["a", "b", "c"], Counter[str]()
    for _ in range(turns):
        chosen = next_tenant(waiting, in_flight, terms)
        assert chosen is not None
        in_flight[chosen] += 1
        waiting.remove(chosen)
        waiting.append(chosen)
    weights = {name: share_of(name, terms).weight for name in waiting}
    loads = [in_flight[name] / weights[name] for name in waiting]
    assert max(loads) - min(loads) <= 1 / min(weights.values()) + 1e-9


def test_terms_are_read_as_operators_write_them() -> None:
    assert parse_tenant_shares("acme=3, zoo=1.5:4,*=1:8,") == {
        "acme": TenantShare(3),
        "zoo": TenantShare(1.5, 4),
        "*": TenantShare(1, 8),
    }
    assert parse_tenant_shares("") == {}


@pytest.mark.parametrize("text", ["acme", "acme=0", "acme=x", "a b=1", "acme=1:", "acme=1:-2"])
def test_what_are_no_terms_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not tenant=weight or tenant=weight:limit"):
        parse_tenant_shares(text)


def test_a_limit_of_nothing_and_terms_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="the limit of acme is 0"):
        parse_tenant_shares("acme=1:0")
    with pytest.raises(ValueError, match="acme is there twice"):
        parse_tenant_shares("acme=1,acme=2")


@given(st.permutations("abcde"), st.dictionaries(NAMES, st.integers(0, 5)))
def test_where_all_are_alike_terms_that_say_so_change_nothing(
    waiting: list[str], in_flight: dict[str, int]
) -> None:
    alike = {"*": TenantShare()}
    assert next_tenant(waiting, in_flight, {}) == next_tenant(waiting, in_flight, alike)
