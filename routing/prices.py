"""What GPUs cost by the hour, as an operator says."""

import re

from routing.classes import MemoryClass

_PRICE = re.compile(r"^(?P<memory_class>\d+gb)=(?P<price>\d{1,9}(\.\d{1,9})?)$", re.ASCII)
_CLASSES = {str(it): it for it in MemoryClass}


def parse_prices(text: str) -> dict[MemoryClass, float]:
    """The price of a GPU hour by class, in whatever money the operator counts in.

    Args:
        text: ``class=price`` with commas between: ``24gb=0.6,40gb=1.8``.

    Raises:
        ValueError: It is none.
    """
    prices: dict[MemoryClass, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PRICE.match(part)
        memory_class = match and _CLASSES.get(match["memory_class"])
        if match is None or memory_class is None:
            there_are = ", ".join(_CLASSES)
            raise ValueError(f"{part!r} is no class=price; the classes are {there_are}")
        if memory_class in prices:
            raise ValueError(f"{memory_class} has two prices")
        prices[memory_class] = float(match["price"])
    return prices
