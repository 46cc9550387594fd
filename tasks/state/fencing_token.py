"""The fencing token of a start of a stage."""

import hashlib
from typing import NamedTuple


class FencingToken(NamedTuple):
    """Only the start with the newest token may change its job.

    The attempt alone is not enough: a broker that fails over may lose the last increment, and the
    next start gets the number again. No two starts have one delivery tag.

    Attributes:
        attempt: The number of the start.
        delivery_tag: The tag of the message that began it.
    """

    attempt: int
    delivery_tag: str

    def __str__(self) -> str:
        """Return the token as scripts compare it."""
        return f"{self.attempt} {self.delivery_tag}"

    @property
    def start_id(self) -> str:
        """The start's part of folder names and store keys, which no two starts share."""
        digest = hashlib.sha256(self.delivery_tag.encode()).hexdigest()[:8]
        return f"{self.attempt}-{digest}"


NO_TOKEN = FencingToken(0, "")
"""The token of no start."""
