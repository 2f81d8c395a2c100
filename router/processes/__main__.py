"""The beginning of a process that the supervisor starts: `python -m router.processes NAME FD`. It is not for people."""

from __future__ import annotations

import signal
import socket
import sys

import uvloop

from router import logs
from router.errors import LeafcutterError
from router.processes.control import ROUTER, Control


def main() -> int:
    """Run one process; the exit status."""
    # The supervisor gets the signals, and tells its processes what to do.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    name, descriptor = sys.argv[1:]
    control = Control(socket.socket(fileno=int(descriptor)))
    logs.set_up(control.orders.config.server, name)
    if control.orders.name != ROUTER:
        from router.processes.edge import run
    else:
        from router.processes.router_process import run
    try:
        uvloop.run(run(control))
    except LeafcutterError as error:
        print(f"leafcutter: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
