"""The broker's clock: the only one by which two machines compare times."""

import time

from redis import Redis

MAX_CLOCK_OFFSET_S = 5.0
"""A machine whose clock is off by more is reported: its logs, traces and files have wrong times."""


def broker_time(client: Redis) -> float:
    """Return the broker's time in seconds since the epoch."""
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6)


def clock_offset_s(client: Redis) -> float:
    """Return how many seconds this machine's clock is ahead of the broker's.

    The reply may have taken any part of the round trip. The offset is reported as small as that
    allows: a slow network is no wrong clock.
    """
    began = time.monotonic()
    broker_s = broker_time(client)
    slack_s = (time.monotonic() - began) / 2
    offset_s = time.time() - slack_s - broker_s
    return max(0.0, offset_s - slack_s) if offset_s > 0 else min(0.0, offset_s + slack_s)
