import pytest

from routing.classes import MemoryClass
from routing.prices import parse_prices


def test_prices_are_read_by_class() -> None:
    assert parse_prices("24gb=0.6, 40gb=2,") == {MemoryClass.GB24: 0.6, MemoryClass.GB40: 2.0}
    assert parse_prices("") == {}


@pytest.mark.parametrize("text", ["24=1", "25gb=1", "24gb", "24gb=-1", "24gb=nan", "24gb=1,24gb=2"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"class=price|two prices"):
        parse_prices(text)
