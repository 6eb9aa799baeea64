"""A measurement's clients, which open sockets, read and discard.

They run in a process of their own. It runs on another core than the server. A read is one system
call for all waiting data, so it costs less than any way of sending; a client that parsed would
measure itself.
"""

import asyncio
import select
import socket
import subprocess
import sys

from tests.benchmarks import machine

HANDSHAKE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: meter.example.com\r\nConnection: Upgrade\r\n"
    b"Pragma: no-cache\r\nCache-Control: no-cache\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"Chrome/141.0.0.0 Safari/537.36\r\n"
    b"Upgrade: websocket\r\nOrigin: https://app.example.com\r\nSec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"Sec-WebSocket-Protocol: taximeter.v1\r\n\r\n"
)
"""A browser's handshake."""

SOCKETS_PER_ADDRESS = 4_000
"""A server admits at most 4,096 sockets from one address, and loopback has many addresses."""
IP_BIND_ADDRESS_NO_PORT = 24
"""Linux, ip(7); the socket module of Python 3.11 has no name for it."""
SOCKETS_PER_BATCH = 100
READ_BYTES = 1 << 20


class Sink:
    """The client process, as the measuring process sees it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.sink"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    async def open(self, port: int, count: int, *, handshake: bool = True) -> None:
        """Opens ``count`` sockets to a port of 127.0.0.1.

        Waits for the answer on each.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"%d %d %d\n" % (port, count, handshake))
        self.process.stdin.flush()
        # The server runs in this very loop and has to continue.
        answer = await asyncio.to_thread(self.process.stdout.readline)
        if answer != b"opened\n":
            raise RuntimeError("the client process ended")

    def close(self) -> None:
        """Ends the process and all its sockets."""
        self.process.kill()
        self.process.communicate()


def _open(port: int, count: int, *, handshake: bool, before: int) -> list[socket.socket]:
    opened: list[socket.socket] = []
    for first in range(0, count, SOCKETS_PER_BATCH):
        batch = []
        for number in range(first, min(first + SOCKETS_PER_BATCH, count)):
            connection = socket.socket()
            # The port is chosen with the connection: an earlier search would take longer than all
            # the rest.
            connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            address = 1 + (before + number) // SOCKETS_PER_ADDRESS
            connection.bind((f"127.0.0.{address}", 0))
            connection.connect(("127.0.0.1", port))
            if handshake:
                connection.sendall(HANDSHAKE)
            batch.append(connection)
        for connection in batch:
            answer = b""
            while handshake and b"\r\n\r\n" not in answer:
                data = connection.recv(4096)
                if not data:
                    raise ConnectionError(answer)
                answer += data
            connection.setblocking(False)
        opened += batch
    return opened


def main() -> None:
    """Carries out the commands on standard input, and reads all the while.

    Ends with the input.
    """
    machine.pin(1)
    machine.raise_descriptor_limit()
    poll = select.epoll()
    poll.register(0, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    buffer = bytearray(READ_BYTES)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == 0:
                order = sys.stdin.buffer.readline().split()
                if not order:
                    return
                port, count, handshake = (int(word) for word in order)
                for connection in _open(
                    port, count, handshake=bool(handshake), before=len(connections)
                ):
                    connections[connection.fileno()] = connection
                    poll.register(connection.fileno(), select.EPOLLIN)
                sys.stdout.write("opened\n")
                sys.stdout.flush()
            elif not connections[descriptor].recv_into(buffer):
                poll.unregister(descriptor)


if __name__ == "__main__":
    main()
