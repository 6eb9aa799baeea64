"""A server process as one of several.

This module has its sockets, and its messages to the supervisor. The process writes ``READY`` to its
standard output when it accepts connections. The end of its standard input means that its supervisor
is gone.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable

from server import limits as server_limits
from server.runtime.settings import Settings

READY = b"ready\n"
"""The line that a process writes when it accepts connections."""


def addresses_of(settings: Settings) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses to listen on: all addresses of the host."""
    found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


class Worker:
    """The role of a process as one of several."""

    def __init__(self, index: int) -> None:
        self.index = index

    def listen(self, settings: Settings) -> list[socket.socket]:
        """This process's own sockets on the shared port, one for each address."""
        return [
            socket.create_server(
                (host, settings.port),
                family=family,
                backlog=server_limits.ACCEPT_QUEUE_SOCKETS,
                reuse_port=True,
            )
            for family, host in addresses_of(settings)
        ]

    def ready(self, stop: Callable[[], None]) -> None:
        """Reports readiness to the supervisor.

        Calls ``stop`` when the supervisor is gone.
        """
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        loop, supervisor = asyncio.get_running_loop(), sys.stdin.fileno()

        def heard() -> None:
            if not os.read(supervisor, 1024):
                loop.remove_reader(supervisor)
                stop()

        loop.add_reader(supervisor, heard)
