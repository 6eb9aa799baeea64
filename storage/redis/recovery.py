"""Finds what Redis has lost, and puts it back.

Every partition has an epoch, which changes whenever a loss is found: when a process loads something
into a partition without an epoch, or asserts a session of which the partition has an older copy.
For a short while after that (``recovering``), Redis takes nothing but assertions.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

from protocol.metering.assertion import Assertion
from protocol.metering.records import Record, SessionEnded
from protocol.metering.session import SessionState
from protocol.metering.states import Phase
from storage import limits as storage_limits
from storage.redis.cluster import ClusterRedis
from storage.redis.encoding import burn_line_at, decode_records, encode_burn_line, encode_grant
from storage.redis.live import Live, LiveError, Script
from storage.redis.spending import AccountName
from storage.rows.accounts import OperationsDone, RecentEntry
from storage.rows.months import LimitChange

_ENCODER = msgspec.json.Encoder()


def is_of_older_copy(epoch: bytes | None) -> bool:
    """Whether an epoch began after only the last writes were lost."""
    return epoch is not None and epoch.startswith(b"behind:")


class RecoveryView(NamedTuple):
    """The result of a look at Redis."""

    partitions: dict[int, tuple[bytes | None, bytes | None]]
    """The watermark (the id of an entry) and the epoch of each partition. None as an epoch: the
    partition has lost everything, and no process has noticed."""
    histories: dict[object, bytes | None]
    """The history of writes that each Redis continues; None: Redis does not report it."""


class Restoring:
    """Puts back what Redis has lost, through the connection of ``live``."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.keys = live.keys
        self._assert = Script(live.redis, "assert")
        self._replay = Script(live.redis, "replay")
        self._recover = Script(live.redis, "recover")
        self._history = Script(live.redis, "history")
        self._recount = Script(live.redis, "recount")

    async def begin_epochs(self) -> None:
        """Begins every partition's first epoch; nothing is put back.

        Only the first process of a deployment may call this.
        """
        async with self.live.redis.pipeline(transaction=False) as pipeline:
            for partition in range(self.keys.partitions):
                pipeline.set(self.keys.epoch(partition), self._epoch("begun"), nx=True)
            await self.live.ask(pipeline.execute())

    def _epoch(self, how: str) -> str:
        """Returns a new epoch's name, unique even after the same loss."""
        return f"{how}:{self.live.node}:{secrets.token_hex(4)}"

    async def look(self, partitions: Iterable[int]) -> RecoveryView:
        """Looks at partitions, and at every Redis that has any partition.

        Raises ``LiveError`` if one of these partitions does not answer.
        """
        wanted = set(partitions)
        places: dict[object, tuple[int, list[int]]] = {}
        for partition in range(self.keys.partitions):
            _, asked = places.setdefault(self._place(partition), (partition, []))
            if partition in wanted:
                asked.append(partition)
        seen = await asyncio.gather(*(self._look_at(*place) for place in places.values()))
        return RecoveryView(
            {partition: one for found, _ in seen for partition, one in found.items()},
            {place: history for place, (_, history) in zip(places, seen, strict=True)},
        )

    def _place(self, partition: int) -> object:
        """Returns the node that has a partition, as far as is known."""
        redis = self.live.redis
        if isinstance(redis, ClusterRedis):
            return redis.master_of(self.keys.epoch(partition))
        return None

    async def _look_at(
        self, partition: int, asked: list[int]
    ) -> tuple[dict[int, tuple[bytes | None, bytes | None]], bytes | None]:
        """Looks at partitions of the one Redis that has ``partition``.

        Watermarks are read before epochs, so that a flush before a loss is never taken for a flush
        after the loss.
        """
        redis = self.live.redis
        async with redis.pipeline(transaction=False) as pipeline:
            for one in asked:
                pipeline.get(self.keys.watermark(one))
                pipeline.get(self.keys.epoch(one))
            # Not by its digest: a Redis that was started empty knows no script.
            pipeline.eval(self._history.text, 1, self.keys.epoch(partition))
            try:
                *found, history = await self.live.ask(pipeline.execute(raise_on_error=False))
            except LiveError:
                if asked:
                    raise
                if isinstance(redis, ClusterRedis):
                    # The next look asks the node that takes over.
                    with contextlib.suppress(LiveError):
                        await self.live.ask(redis.refresh())
                return {}, None
        for answer in found:
            if isinstance(answer, Exception):
                raise LiveError(str(answer) or type(answer).__name__) from answer
        pairs = zip(found[::2], found[1::2], strict=True)
        is_told = isinstance(history, bytes) and history
        return dict(zip(asked, pairs, strict=True)), history if is_told else None

    async def begin_epoch(self, partition: int) -> bool:
        """Begins the epoch of a partition that lost everything.

        Returns whether this call began the epoch.
        """
        async with self.live.redis.pipeline(transaction=True) as pipeline:
            pipeline.set(self.keys.recovering(partition), "1", px=storage_limits.RECOVERY_MS)
            pipeline.set(
                self.keys.unsettled(partition), "1", px=storage_limits.LOST_SESSIONS_AFTER_MS
            )
            pipeline.set(self.keys.epoch(partition), self._epoch("empty"), nx=True)
            *_, begun = await self.live.ask(pipeline.execute())
        return bool(begun)

    async def begin_lost_epochs(self, partition: int) -> None:
        """Begins the epochs of all partitions that the same Redis has lost.

        ``partition`` is one of them. All recover at the same time, rather than each after its first
        user has come. Raises ``LiveError``.
        """
        place = self._place(partition)
        alike = [one for one in range(self.keys.partitions) if self._place(one) == place]
        seen, _ = await self._look_at(partition, alike)
        lost = [one for one, (_, epoch) in seen.items() if epoch is None]
        await asyncio.gather(*map(self.begin_epoch, lost))

    async def is_settled(self, tenant: str) -> bool:
        """Whether no process may still put back a session of a tenant.

        The call also notices a loss that no process has noticed before.
        """
        partition = self.keys.partition(tenant)
        if not await self.live.is_warm(self.keys.epoch(partition)):
            await self.begin_epoch(partition)
        return not await self.live.is_warm(self.keys.unsettled(partition))

    async def put_back(self, assertion: Assertion) -> tuple[str, tuple[str, ...]]:
        """Asserts a session, and returns a status with details.

        The status is ``ok``; ``known``; ``other``: another step counts; ``cold``: the details must
        be loaded before the next assertion; or ``forked``: the detail is the version that the
        session must follow. Raises ``LiveError`` without an answer.
        """
        keys, identity = self.keys, assertion.session.identity
        tenant, session_id = identity.tenant, identity.session_id
        partition = keys.partition(tenant)
        counters = [
            keys.account(tenant, identity.account_id),
            keys.member(tenant, identity.user_id),
            keys.organization(tenant),
            keys.free(tenant, identity.free_key or ""),
        ]
        names = [
            keys.session(tenant, session_id),
            keys.notices(tenant, session_id),
            keys.sockets(tenant, session_id),
            *counters,
            keys.live(partition),
            keys.node(partition, self.live.node),
            keys.graces(partition),
            keys.epoch(partition),
            keys.recovering(partition),
            keys.unsettled(partition),
            *map(keys.contained, counters),
            keys.running(tenant, identity.user_id, identity.kind),
        ]
        status, detail = await self._assert(names, [self._encode(assertion)])
        details = tuple(detail.decode().split(",")) if detail else ()
        return status.decode(), details

    def _encode(self, assertion: Assertion) -> bytes:
        """Encodes the argument of ``assert.lua``."""
        session = assertion.session
        identity, standing, grant = session.identity, session.standing, session.grant
        terms, ended = identity.terms, standing.phase is Phase.ENDED
        encoded: dict[str, Any] = {
            "live_max": terms.max_live_sessions,
            "id": identity.session_id,
            "session": session.key,
            "node": self.live.node,
            "version": standing.version,
            "mark": session.mark,
            "kept": standing.minutes_kept,
            "settled": standing.settled_ms,
            "paused": standing.phase is Phase.PAUSED,
            "identity": _ENCODER.encode(identity).decode(),
            "standing": _ENCODER.encode(standing).decode(),
            "grant": encode_grant(grant),
            "final": grant.final or "",
            "charged": standing.charged_micros,
            "held": grant.held_micros,
            "held_minutes": grant.held_minutes,
            "burn": terms.price_micros * terms.speed,
            "active": standing.phase is Phase.ACTIVE,
            "ended": ended,
            "counts": terms.counts_minutes,
            "counted": standing.counted_minutes,
            "minutes": assertion.minutes,
            "shares": identity.free_key is not None,
            "free_ms": standing.free_ms,
            "line": encode_burn_line(burn_line_at(identity, standing)),
            "notices": [notice.decode() for notice in assertion.notices],
            "present": assertion.present and not ended,
            "idle_ms": storage_limits.ACCOUNT_IDLE_MS,
            "epoch": self._epoch("behind"),
            "recovery_ms": storage_limits.RECOVERY_MS,
            "settling_ms": storage_limits.LOST_SESSIONS_AFTER_MS,
            "publish": self.live.publish,
            "channel": self.keys.channel(identity.tenant, identity.account_id),
        }
        if standing.grace_until is not None:
            encoded["grace_until"] = standing.grace_until
        return orjson.dumps(encoded)

    async def over(self, ended: Sequence[SessionState]) -> None:
        """Lets Redis forget ended sessions, some time from now.

        The sessions are in Postgres, and the process that ended them will not assert them again.
        Redis must not forget them earlier, whatever its clock does: an end that is asserted where
        nothing is left of the session counts as a lost end, and is charged.
        """
        for first in range(0, len(ended), storage_limits.ASSERTIONS_PER_BATCH):
            async with self.live.redis.pipeline(transaction=False) as pipeline:
                for session in ended[first : first + storage_limits.ASSERTIONS_PER_BATCH]:
                    name = session.identity.tenant, session.identity.session_id
                    for key in (self.keys.session(*name), self.keys.notices(*name)):
                        pipeline.pexpire(key, storage_limits.ENDED_SESSION_KEPT_MS)
                await self.live.ask(pipeline.execute())

    async def replay(
        self, partition: int, entries: Sequence[tuple[str, Sequence[Record]]]
    ) -> list[str]:
        """Appends missing entries to an outbox again; returns their present ids."""
        arguments: list[int | str | bytes] = [storage_limits.ACCOUNT_IDLE_MS]
        for entry_id, records in entries:
            arguments += [entry_id, _ENCODER.encode(list(records))]
        keys = [self.keys.outbox(partition), self.keys.replayed(partition)]
        answer = await self._replay(keys, arguments)
        return [entry_id.decode() for entry_id in answer]

    async def replayed_ends(
        self, partition: int, after: str, until: str
    ) -> AsyncIterator[SessionEnded]:
        """Yields the ends of sessions among the entries that were appended again.

        ``after`` is the id of an entry, or ``-`` for the outbox's beginning; the entry ``until``
        is the last one. Raises :class:`LiveError`.
        """
        outbox, since = self.keys.outbox(partition), after
        while True:
            begin = since if since == "-" else f"({since}"
            page = await self.live.ask(
                self.live.redis.xrange(outbox, begin, until, storage_limits.PAGE_ROWS_MAX)
            )
            for entry_id, fields in page:
                since = entry_id.decode()
                if b"t" in fields:
                    continue  # a step's own entry: its process puts the session back
                for record in decode_records(fields[b"r"]):
                    if isinstance(record, SessionEnded):
                        yield record
            if len(page) < storage_limits.PAGE_ROWS_MAX:
                return
            await asyncio.sleep(0)

    async def apply_entries(
        self, account: AccountName, entries: Sequence[RecentEntry], now_ms: int
    ) -> int:
        """Applies ledger entries that an account in Redis lacks; returns how many."""
        keys = self.keys
        names = [keys.account(*account), keys.applied(*account), keys.spends(*account)]
        flat: list[str | int] = []
        for entry in entries:
            flat += [entry.entry_id, entry.amount_micros, entry.position]
        arguments = [now_ms, self.live.publish, keys.channel(*account)]
        arguments += [storage_limits.ACCOUNT_IDLE_MS, *flat]
        return int(await self._recover(names, arguments))

    async def recount(self, done: OperationsDone) -> bool:
        """Raises an operation's count to at least ``done``; returns whether it rose."""
        names = [self.keys.operations(done.tenant, done.account_id)]
        names += [self.keys.hold(done.tenant, hold_id) for hold_id in done.holds]
        return bool(int(await self._recount(names, [done.month, done.operation, done.times])))

    async def has_limit(self, change: LimitChange) -> bool:
        """Whether Redis has Postgres's limit, or lacks its counter."""
        keys, tenant = self.keys, change.tenant
        key = keys.member(tenant, change.user_id) if change.user_id else keys.organization(tenant)
        limit, overage = await self.live.ask(self.live.redis.hmget(key, ["limit", "overage"]))
        here = b"" if change.limit_minutes is None else str(change.limit_minutes).encode()
        return limit is None or (limit, overage) == (here, str(int(change.allow_overage)).encode())
