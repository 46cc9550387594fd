"""GPU memory classes: what a card is worth, judged by the memory its driver reports.

Knows cards and classes; must not know jobs or queues.
"""

from enum import IntEnum

MIB = 2**20
GIB = 2**30


class MemoryClass(IntEnum):
    """A class of GPUs, named by the gigabytes its smallest member is sold with."""

    GB8 = 8
    GB16 = 16
    GB24 = 24
    GB40 = 40
    GB80 = 80

    @property
    def floor_mib(self) -> int:
        """The least memory (MiB, as NVML reports it) a card of this class has."""
        return _FLOOR_MIB[self]

    @property
    def floor_gib(self) -> float:
        """The least memory of a card of this class in GiB: what a job may count on."""
        return self.floor_mib / 1024

    def __str__(self) -> str:
        """Spell the class as people do: ``40gb``."""
        return f"{self.value}gb"


# Cards report less than they are sold with: ECC takes up to 1/16 of GDDR memory, and drivers keep
# some for themselves. A floor lies below every card of its class and above every card of the one
# below it. Raising one turns cards out of their class; lowering one lets a job onto a card that
# cannot hold it.
_FLOOR_MIB = {
    MemoryClass.GB8: 7424,
    MemoryClass.GB16: 14848,
    MemoryClass.GB24: 22528,
    MemoryClass.GB40: 38912,
    MemoryClass.GB80: 76800,
}


def class_for(reported_mib: int) -> MemoryClass | None:
    """The class of a card that reports ``reported_mib`` MiB, or None where it is below all."""
    fitting = [c for c in MemoryClass if c.floor_mib <= reported_mib]
    return max(fitting, default=None)


def smallest_class_holding(needed_gib: float) -> MemoryClass | None:
    """The smallest class whose every card holds ``needed_gib`` GiB, or None where none does."""
    return next((c for c in MemoryClass if needed_gib <= c.floor_gib), None)
