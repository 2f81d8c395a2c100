"""File descriptors, of which a process has only so many (`ulimit -n`): a connection takes one.

The last RESERVE of them are for health checks and files. When only these are left, no client is let in and the data
path opens no connection to an engine, so that a gateway full of requests still knows which engines are well. A lack of
descriptors says nothing about an engine: whoever cannot connect asks `exhausted` before it blames one.
"""

from __future__ import annotations

import errno
import os
import resource

RESERVE = 32
MOST = 1 << 20
"""No more are asked for where there is no limit."""
OUT_OF_FILES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


def limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> int:
    """Raise the limit of this process as far as it may by itself, and return it.

    The usual soft limit of 1,024 is there for programs that use `select`, which this one does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()


def spare(reserve: int = RESERVE) -> bool:
    """Whether a descriptor can be opened that is none of the last `reserve` ones. It takes some microseconds."""
    try:
        lowest_free = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return False
    os.close(lowest_free)
    return lowest_free < limit() - reserve


def exhausted(error: BaseException) -> bool:
    """Whether an operation failed because this machine has no descriptor left, and not for the other end's fault.

    Who needs descriptors does not always say that it got none: to the resolver it is an unknown name.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in OUT_OF_FILES:
            return True
        if isinstance(cause, OSError) and not isinstance(cause, ConnectionError | TimeoutError) and not spare(0):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
