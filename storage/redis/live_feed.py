"""The feed in Redis: figures of processes, and rows of live sessions.

Figures are summed in Redis once a second, and an hour of sums is kept. Rows are published only
while a process watches, and are kept nowhere.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

from protocol import limits
from protocol.metering.session import SessionState
from storage import limits as storage_limits
from storage.redis.encoding import session_of
from storage.redis.figures import AccountFigures, figures_of
from storage.redis.keys import FIGURES, ROWS_CHANNEL, SAMPLES, WATCH_CHANNEL, WATCHED
from storage.redis.live_client import LiveClient
from storage.redis.scripts import Script


class StoredSession(NamedTuple):
    """A live session as Redis has it, for whom no process speaks."""

    session: SessionState
    account: AccountFigures | None
    """None: the account is cold."""
    nodes: tuple[str, ...]
    """The processes that are noted to have sockets of it."""


class LiveFeed:
    """The feed as one process reads and writes it."""

    def __init__(self, live: LiveClient) -> None:
        self.live = live
        self._sample = Script(live.redis, "sample")
        self._samples = Script(live.redis, "samples")

    async def sample(self, figures: Mapping[str, Any], now_ms: int) -> bool:
        """Writes this process's figures; returns whether rows are wanted.

        ``figures`` are numbers and mappings of numbers. ``now_ms`` is cluster time. Raises
        ``LiveError``.
        """
        text = orjson.dumps({**figures, "at": now_ms})
        keys = [FIGURES, SAMPLES, WATCHED]
        arguments = [self.live.node, text, now_ms, limits.NODE_SILENT_MS]
        return bool(await self._sample(keys, [*arguments, storage_limits.SAMPLES_KEPT]))

    async def samples(self, count: int) -> bytes:
        """The newest sums as a JSON array, the newest last. Raises ``LiveError``."""
        found: bytes = await self._samples([SAMPLES], [count])
        return found

    async def figures(self) -> dict[str, dict[str, Any]]:
        """The newest figures of each process, by its name. Raises ``LiveError``."""
        found = await self.live.ask(self.live.redis.hgetall(FIGURES))
        return {node.decode(): orjson.loads(text) for node, text in found.items()}

    async def watch(self) -> None:
        """Has all processes publish their rows for a while. Raises ``LiveError``."""
        await self.live.ask(self.live.redis.set(WATCHED, 1, px=storage_limits.WATCHED_MS))

    async def ask_for_all(self, question: str) -> None:
        """Asks all processes for all of their rows. Raises ``LiveError``.

        Each of them publishes its rows, and ``question`` with the last.
        """
        await self._publish(WATCH_CHANNEL, orjson.dumps({"all": question}))

    async def publish(self, message: Mapping[str, Any]) -> None:
        """Publishes rows of this process. Raises ``LiveError``."""
        await self._publish(ROWS_CHANNEL, msgspec.json.encode(message))

    async def _publish(self, channel: str, text: bytes) -> None:
        live = self.live
        await live.ask(live.redis.execute_command(live.publish, channel, text))  # type: ignore[no-untyped-call]

    async def keys_in(self, partition: int) -> AsyncIterator[list[str]]:
        """Yields the keys of a partition's live sessions, a few at once.

        A key may come twice. Raises ``LiveError``.
        """
        live, cursor = self.live.keys.live(partition), 0
        while True:
            scan = self.live.redis.sscan(live, cursor, count=storage_limits.PAGE_ROWS_MAX)
            cursor, found = await self.live.ask(scan)
            yield [key.decode() for key in found]
            if not cursor:
                return

    async def stored(self, keys: Sequence[str]) -> list[StoredSession]:
        """The live sessions with these keys that Redis still has.

        ``keys`` is at most ``CLAIMS_PER_PIPELINE_MAX`` long. Raises ``LiveError``.
        """
        names, redis = self.live.keys, self.live.redis
        fields = ("identity", "standing", "grant", "final")
        async with redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                tenant, _, session_id = key.rpartition("/")
                pipeline.hmget(names.session(tenant, session_id), fields)
                pipeline.smembers(names.sockets(tenant, session_id))
            answers = await self.live.ask(pipeline.execute())
        found = [
            (session_of(one), tuple(sorted(node.decode() for node in nodes)))
            for one, nodes in zip(answers[::2], answers[1::2], strict=True)
            if one[0]
        ]
        if not found:
            return []
        async with redis.pipeline(transaction=False) as pipeline:
            for session, _ in found:
                identity = session.identity
                pipeline.hgetall(names.account(identity.tenant, identity.account_id))
            accounts = await self.live.ask(pipeline.execute())
        return [
            StoredSession(session, figures_of(account), nodes)
            for (session, nodes), account in zip(found, accounts, strict=True)
        ]
