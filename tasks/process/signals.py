"""Signals of this package's processes: they drain however they are asked to stop."""

import os
import signal
from types import FrameType

_STOPPING = (signal.SIGHUP, signal.SIGQUIT)


def ignored_signals() -> set[signal.Signals]:
    """Return those of SIGHUP and SIGQUIT that the starter ignores, as ``nohup`` does."""
    return {number for number in _STOPPING if signal.getsignal(number) is signal.SIG_IGN}


def drain_on_hangup(ignored: set[signal.Signals] | None = None) -> None:
    r"""Treat SIGHUP and SIGQUIT as SIGTERM, and let SIGUSR1 do nothing.

    A closed terminal sends the first, Ctrl-\ the second; both would end a process on the spot, and
    its children with it.

    Args:
        ignored: Signals that stay ignored; None are those that are ignored now.
    """
    ignored = ignored_signals() if ignored is None else ignored
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN if number in ignored else _terminate)
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, _do_nothing)


def leave_stopping_to_the_parent() -> None:
    """Do nothing on SIGHUP and SIGQUIT, which a terminal sends to a worker's child, too."""
    for number in _STOPPING:
        signal.signal(number, _do_nothing)


# Not SIG_IGN, which processes that this one starts would inherit.
def _do_nothing(_signal: int, _frame: FrameType | None) -> None:
    pass


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
