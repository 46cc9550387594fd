"""GPU memory classes: the class of a card, judged by the memory that its driver reports.

Knows cards and classes, not jobs or queues.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

MIB = 2**20
GIB = 2**30


class MemoryClass(IntEnum):
    """A class of GPUs, named by the gigabytes that its smallest card is sold with."""

    GB8 = 8
    GB16 = 16
    GB24 = 24
    GB40 = 40
    GB80 = 80

    @property
    def floor_mib(self) -> int:
        """The least memory of a card of this class, in MiB as NVML reports it."""
        return _FLOOR_MIB[self]

    @property
    def floor_gib(self) -> float:
        """The least memory of a card of this class in GiB: a job may use this much."""
        return self.floor_mib / 1024

    def __str__(self) -> str:
        """Return the class's name: ``40gb``."""
        return f"{self.value}gb"


# Cards report less than they are sold with: ECC takes up to 1/16 of GDDR memory, and drivers
# reserve some. A floor is below every card of its class and above every card of the class below.
# Raising one moves cards out of their class; lowering one sends jobs to cards that cannot hold
# them.
_FLOOR_MIB = {
    MemoryClass.GB8: 7424,
    MemoryClass.GB16: 14848,
    MemoryClass.GB24: 22528,
    MemoryClass.GB40: 38912,
    MemoryClass.GB80: 76800,
}
_CLASSES = {str(memory_class): memory_class for memory_class in MemoryClass}
_CURRENCY = re.compile(r"^currency=(?P<currency>[A-Z]{3})$", re.ASCII)
_PRICE = re.compile(r"^(?P<memory_class>\d+gb)=(?P<price>\d{1,9}(\.\d{1,9})?)$", re.ASCII)


def class_for(reported_mib: int) -> MemoryClass | None:
    """Return the class of a card that reports this memory; None if it is below all classes."""
    fitting = [c for c in MemoryClass if c.floor_mib <= reported_mib]
    return max(fitting, default=None)


def smallest_class_holding(needed_gib: float) -> MemoryClass | None:
    """Return the smallest class all of whose cards hold ``needed_gib``; None if none does."""
    return next((c for c in MemoryClass if needed_gib <= c.floor_gib), None)


@dataclass(frozen=True)
class GpuPrices:
    """What GPUs cost.

    Attributes:
        per_hour: The price of a GPU hour by class.
        currency: Its currency by ISO 4217; None if the operator does not name it.
    """

    per_hour: Mapping[MemoryClass, float] = field(default_factory=dict)
    currency: str | None = None


NO_PRICES = GpuPrices()


def parse_prices(text: str) -> GpuPrices:
    """Parse the price of a GPU hour by class.

    Args:
        text: ``class=price``, separated by commas, and the currency: ``24gb=0.6,currency=EUR``.

    Raises:
        ValueError: The text is malformed.
    """
    prices: dict[MemoryClass, float] = {}
    currency = None
    for part in filter(None, (part.strip() for part in text.split(","))):
        if named := _CURRENCY.match(part):
            if currency is not None:
                raise ValueError("the currency is named twice")
            currency = named["currency"]
            continue
        match = _PRICE.match(part)
        memory_class = match and _CLASSES.get(match["memory_class"])
        if match is None or memory_class is None:
            raise ValueError(
                f"{part!r} is not class=price or currency=XYZ; the classes are "
                f"{', '.join(_CLASSES)}"
            )
        if memory_class in prices:
            raise ValueError(f"{memory_class} has two prices")
        prices[memory_class] = float(match["price"])
    return GpuPrices(prices, currency)
