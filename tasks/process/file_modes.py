"""Modes of the files that a process makes: other users of the machine cannot read them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_PRIVATE, _OTHERS = 0o077, 0o007
# The umask that this process was started with; reading it sets it.
_given = os.umask(_PRIVATE)
os.umask(_given)


def keep_files_private() -> None:
    """Make new files readable for this user only.

    An umask that denies other users everything stays: its operator shares files with a group.
    """
    if _given & _OTHERS != _OTHERS:
        os.umask(_PRIVATE)


@contextmanager
def output_files() -> Iterator[None]:
    """Give files of the block the modes that the user expects, who has named them as output."""
    umask = os.umask(_given)
    try:
        yield
    finally:
        os.umask(umask)
