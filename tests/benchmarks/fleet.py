"""Thousands of clients of a measurement, in a process with a handle.

The process takes commands on its standard input, one line of JSON each, and answers each with a
line.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import uvloop

from server.access.tokens import mint_token
from server.runtime.settings import load_settings
from tests.benchmarks import machine
from tests.benchmarks.client import FleetClient

CONNECTING_MAX = 64
"""Clients of one fleet that connect at the same time, when it opens."""
ANSWER_BYTES_MAX = 1 << 27
WAIT_S_MAX = 600
"""Time after which a command counts as failed."""
TOKEN_TTL_S = 24 * 3600


class Fleet:
    """The fleet's process, as the measuring process sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, environment: Mapping[str, str]) -> "Fleet":
        """Starts the process; it makes tokens with the settings of the environment."""
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.benchmarks.fleet"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=dict(environment),
                limit=ANSWER_BYTES_MAX,
            )
        )

    async def _ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps(order) + b"\n")
        async with asyncio.timeout(WAIT_S_MAX):
            answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the fleet's process ended")
        return orjson.loads(answer)

    async def open(
        self,
        ports: list[int],
        count: int,
        *,
        kind: str = "chat",
        tick_ms: int = 1000,
        is_watchful: bool = False,
    ) -> None:
        """Opens ``count`` more clients, spread over these ports; each starts a session.

        Returns when the server has shown every session as active. Raises when one is not.
        """
        refused = await self._ask(
            do="open", ports=ports, count=count, kind=kind, tick_ms=tick_ms, is_watchful=is_watchful
        )
        if refused:
            raise RuntimeError(f"{len(refused)} sessions did not start: {refused[:3]}")

    async def ticked(self) -> None:
        """Returns when every session has ticked."""
        await self._ask(do="ticked")

    async def turn_to(self, ports: list[int]) -> None:
        """Sets the ports at which clients reconnect from now on."""
        await self._ask(do="turn_to", ports=ports)

    async def abandon(self, port: int) -> None:
        """Makes all clients of a port hang up and reconnect elsewhere.

        They act as after a wait in vain.
        """
        await self._ask(do="abandon", port=port)

    async def mark(self, at: float) -> None:
        """Marks an instant of the monotonic clock; see ``ticking``."""
        await self._ask(do="mark", at=at)

    async def ticking(self) -> list[float]:
        """Returns when each live session has ticked since the mark.

        Its connection must not have been lost since that tick. Returns for each how long after the
        mark the tick came, in seconds. For a watchful fleet.
        """
        waits: list[float] = await self._ask(do="ticking")
        return waits

    async def testimonies(self) -> list[dict[str, Any]]:
        """What each client saw; see ``client.ClientWitness``."""
        seen: list[dict[str, Any]] = await self._ask(do="testimonies")
        return seen

    async def returned(self, port: int, ports: list[int]) -> list[dict[str, Any]]:
        """Waits until a port's former clients are back, and their sessions tick.

        The clients come back at other ports. The result has for each client ``gone_at``,
        ``answered_at`` and ``ticked_at`` by the monotonic clock, ``attempts`` to connect, and
        whether the session has ``ended``.
        """
        found: list[dict[str, Any]] = await self._ask(do="returned", port=port, ports=ports)
        return found

    async def stop(self) -> list[dict[str, Any]]:
        """Stops every session; returns the receipts in the clients' order."""
        receipts: list[dict[str, Any]] = await self._ask(do="stop")
        return receipts

    async def ended(self, count: int) -> None:
        """Returns when ``count`` sessions have ended by themselves."""
        await self._ask(do="ended", count=count)

    async def close(self) -> None:
        """Ends the process and all its sockets."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.communicate()


class FleetProcess:
    """The clients, in their own process."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings = load_settings()
        self.ports: list[int] = []
        self.kind = ""
        self.tick_ms = 0
        self.is_watchful = False
        self.clients: list[FleetClient] = []
        self._change = asyncio.Event()

    def token(self, user: str) -> str:
        """See ``client.FleetContext``."""
        return mint_token(self.settings, user, ttl_seconds=TOKEN_TTL_S)

    def moved(self, _: FleetClient) -> None:
        """See ``client.FleetContext``."""
        self._change.set()

    async def until(
        self, condition: Callable[[FleetClient], bool], clients: list[FleetClient]
    ) -> None:
        """Waits until a condition has held for each of these clients."""
        waiting = clients
        while waiting := [one for one in waiting if not condition(one)]:
            self._change.clear()
            await self._change.wait()
            # A thousand clients may change at once, and a look at all of them is work too.
            await asyncio.sleep(0.005)

    async def open(
        self, ports: list[int], count: int, kind: str, tick_ms: int, is_watchful: bool
    ) -> Any:
        """Opens more clients."""
        self.ports, self.kind, self.tick_ms = ports, kind, tick_ms
        self.is_watchful = is_watchful
        first = len(self.clients)
        fresh = [
            FleetClient(self, number, ports[number % len(ports)])
            for number in range(first, first + count)
        ]
        self.clients += fresh
        connecting = asyncio.Semaphore(CONNECTING_MAX)

        async def begin(client: FleetClient) -> None:
            async with connecting:
                await client.connect()
                await self.until(lambda one: bool(one.session), [client])

        await asyncio.gather(*(begin(client) for client in fresh))
        return [one.session for one in fresh if one.session.get("state") != "active"]

    async def ticked(self) -> Any:
        """Waits until every session ticks."""
        await self.until(lambda one: one.ticks > 0, self.clients)

    async def returned(self, port: int, ports: list[int]) -> Any:
        """Waits for the clients that had to go to another port."""
        self.ports = ports
        moving = [one for one in self.clients if one.port == port or one.gone_at is not None]
        await self.until(
            lambda one: one.gone_at is not None and (one.ticked_at or one.receipt) is not None,
            moving,
        )
        return [
            {
                "number": one.number,
                "gone_at": one.gone_at,
                "answered_at": one.answered_at,
                "ticked_at": one.ticked_at,
                "attempts": one.attempts - 1,
                "ended": one.receipt is not None,
            }
            for one in moving
        ]

    async def turn_to(self, ports: list[int]) -> Any:
        """Sets the ports of the living processes."""
        self.ports = ports

    async def abandon(self, port: int) -> Any:
        """Makes all clients of a port reconnect elsewhere."""
        for one in self.clients:
            if one.port == port:
                one.abandon()

    async def mark(self, at: float) -> Any:
        """Sets the mark, after which each client must tick again."""
        for one in self.clients:
            one.witness.mark_at, one.witness.tick_at = at, None

    async def ticking(self) -> Any:
        """Waits until all clients have ticked since the mark."""
        running = [one for one in self.clients if one.receipt is None]
        await self.until(
            lambda one: one.receipt is not None or one.witness.tick_at is not None, running
        )
        marked = [one.witness for one in running]
        return [one.tick_at - one.mark_at for one in marked if one.tick_at is not None]

    async def testimonies(self) -> Any:
        """What each client saw."""
        return [one.witness.testimony() for one in self.clients]

    async def stop(self) -> Any:
        """Ends every session."""
        for client in self.clients:
            client.stop()
        return await self.ended(len(self.clients))

    async def ended(self, count: int) -> Any:
        """Waits until ``count`` sessions have ended."""
        while sum(one.receipt is not None for one in self.clients) < count:
            self._change.clear()
            await self._change.wait()
            await asyncio.sleep(0.005)
        return [one.receipt for one in self.clients]


async def main() -> None:
    """Carries out the commands on standard input until it ends."""
    fleet = FleetProcess()
    loop = asyncio.get_running_loop()
    while order := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        asked = orjson.loads(order)
        answer = await getattr(fleet, asked.pop("do"))(**asked)
        sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    machine.raise_descriptor_limit()
    uvloop.run(main())
