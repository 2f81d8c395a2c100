"""The HTTP server of the order's state: a thread for each connection, of which there are few, and none waits long."""

from __future__ import annotations

import socket as sockets
import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

MOST_CONNECTIONS = 32
LONGEST_WAIT_S = 10.0  # for a client that sends or reads nothing


class _Handler(WSGIRequestHandler):
    timeout = LONGEST_WAIT_S

    def log_message(self, *_: Any) -> None:
        """Requests are not logged."""


class StateServer(ThreadingMixIn, WSGIServer):
    """Serves up to MOST_CONNECTIONS at a time; a further one is closed at once."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, or that sent what is not HTTP, is its own affair."""


def start_state_server(port: int, address: str, app: Callable[..., Any]) -> tuple[StateServer, threading.Thread]:
    """Serve `app` on a thread from now on. Raises OSError or OverflowError if the port cannot be bound."""
    server = make_server(address, port, app, _of_family(address), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server, thread


def _of_family(address: str) -> type[StateServer]:
    """Return the server class for IPv4 or IPv6, whichever the address is of."""

    class Server(StateServer):
        address_family = sockets.getaddrinfo(address, None, type=sockets.SOCK_STREAM)[0][0]

    return Server
