"""``JobWebhook``: where a job's events are delivered."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_serializer

from tasks.hosts import address_in, is_public
from tasks.jobs.field_metadata import Location
from tasks.strict_model import NO_BOOLEAN, StrictModel

WebhookEvent = Literal[
    "accepted", "started", "progress", "sample", "checkpoint", "succeeded", "failed", "cancelled"
]
_ENDS: tuple[WebhookEvent, ...] = ("succeeded", "failed", "cancelled")
# A URL's own characters, percent-encoded where it needs others.
_URL = re.compile(r"[!-~]+")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+:[0-9A-Fa-f:.]*")


def _checked_url(url: str) -> str:
    """Refuse an address that no webhook is sent to; no message shows its path and query."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("is not an address; write https://HOST/PATH") from None
    if not _URL.fullmatch(url) or not _HOST.fullmatch(host) or port == 0:
        raise ValueError("is not an address; write https://HOST/PATH, percent-encoded")
    if parts.scheme != "https":
        raise ValueError("is not encrypted; write https://HOST/PATH")
    if "@" in parts.netloc:
        raise ValueError(
            "has a user or a password in it; leave them out, and verify the signature instead"
        )
    if parts.fragment:
        raise ValueError("has a fragment, which is never sent; leave out '#' and what follows")
    address = address_in(host)
    if address is not None and not is_public(address):
        raise ValueError(f"has the address {address}, which is not public; write a public name")
    return url


def _some(events: tuple[WebhookEvent, ...]) -> tuple[WebhookEvent, ...]:
    """Refuse no events; ``min_length`` would count a value that is invalid as missing, too."""
    if not events:
        raise ValueError(f"must have a value; leave it out for {', '.join(_ENDS)}")
    return events


class JobWebhook(StrictModel):
    """Where a job's events are delivered, signed with the secrets of its tenant."""

    url: Annotated[
        str,
        Location.NONE,
        Field(min_length=1, max_length=2000, repr=False),
        AfterValidator(_checked_url),
    ]
    """The receiver's public ``https://`` address. Only the receiver gets its path and query: all
    that shows the job shows the rest."""

    events: Annotated[tuple[WebhookEvent, ...], Field(max_length=8), AfterValidator(_some)] = _ENDS
    """The events that are delivered. ``started`` is the job's first stage, ``sample`` images of the
    validation prompts."""

    progress_interval: Annotated[float, Field(ge=10, le=86400), NO_BOOLEAN] = 60
    """The minimum seconds between deliveries of ``progress``; what comes between is left out."""

    @field_serializer("url")
    def _origin(self, url: str) -> str:
        """Return what is shown of the address, also in documents of the whole job."""
        return f"https://{urlsplit(url).netloc}"

    def whole(self) -> dict[str, object]:
        """Return the webhook with its whole address, for the job's record only."""
        return {**self.model_dump(), "url": self.url}
