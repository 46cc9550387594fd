import csv
import re
from pathlib import Path

import pytest

from routing.classes import (
    NO_PRICES,
    GpuPrices,
    MemoryClass,
    class_for,
    parse_prices,
    smallest_class_holding,
)

# The memory that drivers report of real cards, in MiB, and what each was sold as. A card reports
# other numbers under other drivers, and less if its memory corrects errors.
CARDS = list(csv.DictReader((Path(__file__).parent / "cards.csv").read_text("utf-8").splitlines()))


def sold_as(marketed_gb: int) -> MemoryClass | None:
    return max((c for c in MemoryClass if c <= marketed_gb), default=None)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card['gpu']}-{card['reported_mib']}")
def test_real_cards_and_slices_get_their_class(card: dict[str, str]) -> None:
    assert class_for(int(card["reported_mib"])) == sold_as(int(card["marketed_gb"]))


def test_a_slice_counts_by_its_own_memory() -> None:
    slices = [card for card in CARDS if card["gpu"].startswith("MIG")]
    assert len(slices) > 10
    for card in slices:
        assert f".{card['marketed_gb']}gb" in card["gpu"]
        whole = re.search(r"(\d+)GB$", card["gpu"])
        if whole is not None and "7g" not in card["gpu"]:
            assert int(card["marketed_gb"]) < int(whole[1])


@pytest.mark.parametrize("memory_class", MemoryClass)
def test_a_class_holds_its_floor_and_no_mib_more(
    memory_class: MemoryClass,
) -> None:
    assert class_for(memory_class.floor_mib) == memory_class
    assert class_for(memory_class.floor_mib - 1) != memory_class
    assert smallest_class_holding(memory_class.floor_gib) == memory_class
    above = smallest_class_holding(memory_class.floor_gib + 1 / 1024)
    assert above is None or above > memory_class


def test_a_card_without_memory_has_no_class() -> None:
    assert class_for(0) is None


def test_prices_are_parsed_by_class() -> None:
    per_hour = {MemoryClass.GB24: 0.6, MemoryClass.GB40: 2.0}
    assert parse_prices("24gb=0.6, 40gb=2,") == GpuPrices(per_hour)
    assert parse_prices("currency=EUR,24gb=0.6,40gb=2") == GpuPrices(per_hour, "EUR")
    assert parse_prices("") == NO_PRICES


@pytest.mark.parametrize(
    "text",
    [
        "24=1",
        "25gb=1",
        "24gb",
        "24gb=-1",
        "24gb=nan",
        "24gb=1,24gb=2",
        "currency=euro",
        "currency=EUR,currency=USD",
    ],
)
def test_malformed_prices_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"class=price|two prices|named twice"):
        parse_prices(text)
