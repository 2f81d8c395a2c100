"""What the gateway writes is a regular file.

A file that is rotated or replaced is renamed first, and a device, a pipe or a socket must not be: as root, recording to
/dev/null would rename it for the whole machine.
"""

from __future__ import annotations

import os
import stat

from router.errors import ConfigError

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def check_regular(key: str, path: str) -> None:
    """Raise ConfigError unless `path` is a regular file, or a link to one, or there is nothing yet. key: the option."""
    if not os.path.basename(path):
        raise ConfigError(key, path, "the name of a file")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise ConfigError(key, path, "a regular file, but this is a link to nothing") from None
        return
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        words = getattr(error, "strerror", None) or str(error)
        raise ConfigError(key, path, f"a file that can be written ({words})") from None
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in KINDS if test(mode)), "something else")
        raise ConfigError(key, path, f"a regular file, but this is {kind}")
