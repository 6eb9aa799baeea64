"""The live state: sessions, accounts and months in Redis, changed by atomic steps.

Redis here is the credit-control server of RFC 8506. Every operation is one Lua script
(``storage/redis/lua``); this module names the keys, packs the arguments and reads the answers.
Mutations are sent without retry by the client library, which would run them again in
silence; repeating one is the caller's decision, and safe: a step carries the version
that it was made from, and an entry its id.
"""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec
import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from protocol import limits
from protocol.metering.effects import Reply
from protocol.metering.projection import MonthProjection
from protocol.metering.session import Identity, Session, session_key
from protocol.metering.steps import Step
from storage import limits as storage_limits
from storage.redis.beats import Beat, Look, beat_of, look_of
from storage.redis.channels import agree_on_channels
from storage.redis.cluster import ELSEWHERE, UNANSWERED, ClusterRedis
from storage.redis.encoding import (
    appended_at,
    decided_at,
    encode_step,
    made_at,
    month_of,
    reply_of,
    session_of,
)
from storage.redis.figures import AccountFigures, figures_of
from storage.redis.keys import CHANNELS, CLOCK, LOOK_CHANNEL, NODES, Keys
from storage.redis.scripts import LiveError, Script, connect
from storage.rows.accounts import AccountRecord

__all__ = [
    "AccountFigures",
    "Beat",
    "Change",
    "Found",
    "Live",
    "LiveError",
    "Look",
    "Oldest",
    "Outcome",
    "Script",
    "connect",
]

log = structlog.get_logger()


class Found(msgspec.Struct, frozen=True):
    """A session that is in Redis."""

    session: Session
    notices: tuple[bytes, ...]
    """Oldest first."""
    nodes: frozenset[str]
    """The processes that have sockets of it."""


class Change(msgspec.Struct, frozen=True):
    """The account's figures after a change: what a projection takes."""

    version: int
    gross_micros: int
    reserved_micros: int


class Outcome(msgspec.Struct, frozen=True):
    """What became of a step: an answer for the meter, or what is missing."""

    reply: Reply | None
    change: Change | None = None
    """The account's figures, when the step changed its projection."""
    cold: tuple[str, ...] = ()
    """What must be loaded before the step is asked again."""
    gone: bool = False
    """Redis has lost the session, or the newest of its steps."""
    outdated: bool = False
    """What a start was decided from is otherwise now; see ``protocol.metering.steps.Basis``."""
    full: bool = False
    """So much waits for Postgres that no session is started."""
    crowded: bool = False
    """The user has as many live sessions of the kind as it allows: no session is started."""
    entry_id: str = ""
    """The outbox entry in which the step's records are; empty: there are none."""
    held: bool = False
    """Only what other sessions hold was in the way: they were told to give some back."""
    failed: str = ""
    """Redis refused to run the script, and says why: nothing was done. Or this step could not
    be written down for it."""
    unread: bool = False
    """It was made, or was not: its answer could not be read, for the reason in ``failed``."""


class Oldest(NamedTuple):
    """The oldest record of an outbox."""

    made_at: int
    """The instant of the step that appended it, in cluster time."""
    age_ms: int
    """Since it was appended, by Redis's own clock: the one by which keys expire."""


class Live:
    """The live state, as one process (``node``) works on it."""

    def __init__(self, redis: Redis, keys: Keys, node: str) -> None:
        self.redis = redis
        self.keys = keys
        self.node = node
        self._marks = itertools.count(1)
        """One for each step that is sent; with the process's name no other step has it."""
        self.publish = "PUBLISH"
        """``SPUBLISH`` in a cluster that has sharded channels; see ``prepare``."""
        self._commit = Script(redis, "commit")
        self._account = Script(redis, "account")
        self._attach = Script(redis, "attach")
        self._credit = Script(redis, "credit")
        self._load = Script(redis, "load")
        self._beat = Script(redis, "beat")
        self._look = Script(redis, "look")
        self._oldest = Script(redis, "oldest")
        self._limit = Script(redis, "limit")
        self._retreat = Script(redis, "retreat")
        self._prepare = Script(redis, "prepare")

    async def prepare(self) -> None:
        """Finds out whom to ask, and how channels are told."""
        if isinstance(self.redis, ClusterRedis):
            await self.ask(self.redis.initialize())
            if await self.ask(agree_on_channels(self.redis, CHANNELS)):
                self.publish = "SPUBLISH"

    def shard(self, tenant: str) -> object:
        """What answers or fails together: steps of different ones belong in different
        pipelines."""
        if isinstance(self.redis, ClusterRedis):
            return self.redis.master_of(self.keys.live(self.keys.partition(tenant)))
        return None

    # --- Sessions ------------------------------------------------------------------

    async def commit(self, steps: Sequence[Step], node: str | None = None) -> list[Outcome]:
        """Makes the steps, in one pipeline; an outcome for each, in order.

        ``node`` is the process in whose name they are made: another one's, where a dead
        process is swept. Raises :class:`LiveError` when Redis does not answer. A step that
        cannot be encoded, or whose answer cannot be read, fails alone.
        """
        outcomes: dict[int, Outcome] = {}
        commands = []
        for index, step in enumerate(steps):
            if index and index % storage_limits.ANSWERS_PER_TURN == 0:
                await asyncio.sleep(0)
            try:
                commands.append(self._commit_command(step, node or self.node))
            except Exception as error:
                log.exception("step_not_encoded", session=step.before.key)
                outcomes[index] = Outcome(reply=None, failed=repr(error))
        if commands:
            sent = [step for index, step in enumerate(steps) if index not in outcomes]
            answered = await self._made(sent, commands)
            rest = iter(answered)
            return [outcomes.get(index) or next(rest) for index in range(len(steps))]
        return [outcomes[index] for index in range(len(steps))]

    async def _made(self, steps: Sequence[Step], commands: list[tuple[Any, ...]]) -> list[Outcome]:
        answers: list[Any]
        try:
            async with asyncio.timeout(limits.REDIS_TIMEOUT_MS / 1000):
                answers = await self._pipeline(commands)
                if any(isinstance(answer, NoScriptError) for answer in answers):
                    # Redis forgot its scripts, so none of these ran; the others did.
                    missed = [
                        index
                        for index, answer in enumerate(answers)
                        if isinstance(answer, NoScriptError)
                    ]
                    for key in {commands[index][3] for index in missed}:
                        await self._commit.load(key)
                    again = await self._pipeline([commands[index] for index in missed])
                    for index, answer in zip(missed, again, strict=True):
                        answers[index] = answer
            for answer in answers:
                if isinstance(answer, (*ELSEWHERE, *UNANSWERED)):
                    raise answer
        except (RedisError, OSError, TimeoutError) as error:
            raise LiveError(str(error) or type(error).__name__) from error
        return [_outcome(step, answer) for step, answer in zip(steps, answers, strict=True)]

    async def _pipeline(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        if len(commands) == 1:
            try:
                return [await self.redis.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
            except NoScriptError as error:
                return [error]
        async with self.redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)

    def _commit_command(self, step: Step, node: str) -> tuple[Any, ...]:
        keys, identity = self.keys, step.before.identity
        tenant, session_id = identity.tenant, identity.session_id
        partition = keys.partition(tenant)
        names = [
            keys.session(tenant, session_id),
            keys.notices(tenant, session_id),
            keys.sockets(tenant, session_id),
            keys.account(tenant, identity.account_id),
            keys.member(tenant, identity.user_id),
            keys.organization(tenant),
            keys.free(tenant, identity.free_key or ""),
            keys.outbox(partition),
            keys.live(partition),
            keys.node(partition, node),
            keys.graces(partition),
            keys.recovering(partition),
            keys.epoch(partition),
            keys.prepared(tenant, session_id),
            keys.running(tenant, identity.user_id, identity.kind),
        ]
        channel = keys.channel(tenant, identity.account_id)
        limits_channel = keys.limits_channel(tenant)
        mark = f"{self.node}.{next(self._marks)}"
        argument = encode_step(step, node, mark, self.publish, channel, limits_channel)
        return ("EVALSHA", self._commit.digest, len(names), *names, argument)

    async def attach(
        self,
        tenant: str,
        session_id: str,
        *,
        user_id: str = "",
        read_only: bool = False,
        watch: bool = False,
    ) -> Found | None:
        """Attaches this process to a session; None when it is not there.

        With ``user_id``, one of another user's, or one that has ended, is just read.
        ``read_only`` only reads it; with ``watch`` its steps are told to whoever listens
        to the account's channel, though one process alone serves it.
        """
        keys = self.keys
        fields, notices, nodes = await self._attach(
            [
                keys.session(tenant, session_id),
                keys.notices(tenant, session_id),
                keys.sockets(tenant, session_id),
                keys.node(keys.partition(tenant), self.node),
            ],
            ["" if read_only else self.node, f"{tenant}/{session_id}", int(watch), user_id],
        )
        if not fields:
            return None
        return Found(
            session=session_of(fields),
            notices=tuple(reversed(notices)),
            nodes=frozenset(node.decode() for node in nodes),
        )

    async def confirm_preparation(
        self, tenant: str, session_id: str, preparation: str, expires_at: int
    ) -> Literal["ok", "exists", "unsettled"]:
        """Makes sure that a session starts as it was prepared, which Postgres has by now.

        ``exists``: it has started otherwise. ``unsettled``: after a loss it may run, and not
        be here.
        """
        keys, partition = self.keys, self.keys.partition(tenant)
        names = [keys.session(tenant, session_id), keys.prepared(tenant, session_id)]
        names += [keys.epoch(partition), keys.recovering(partition), keys.unsettled(partition)]
        arguments = [preparation, expires_at, storage_limits.START_MS_MAX]
        answer = await self._prepare(names, arguments)
        return cast(Literal["ok", "exists", "unsettled"], answer.decode())

    async def sessions(self, tenant: str, session_ids: Sequence[str]) -> list[Session]:
        """Sessions of a tenant as they stand, without those that are not there."""
        fields = ("identity", "standing", "grant", "final")
        async with self.redis.pipeline(transaction=False) as pipeline:
            for session_id in session_ids:
                pipeline.hmget(self.keys.session(tenant, session_id), fields)
            found = await self.ask(pipeline.execute())
        return [session_of(one) for one in found if one[0]]

    async def sessions_of_tenant(self, tenant: str) -> AsyncIterator[list[Session]]:
        """The live sessions of a tenant as they stand, a few at a time, in no order."""
        live, cursor = self.keys.live(self.keys.partition(tenant)), 0
        while True:
            scan = self.redis.sscan(
                live, cursor, match=f"{tenant}/*", count=storage_limits.PAGE_ROWS_MAX
            )
            cursor, found = await self.ask(scan)
            names = [member.decode().rpartition("/")[2] for member in found]
            for first in range(0, len(names), storage_limits.CLAIMS_PER_PIPELINE_MAX):
                part = names[first : first + storage_limits.CLAIMS_PER_PIPELINE_MAX]
                yield await self.sessions(tenant, part)
            if not cursor:
                return

    # --- Counters ------------------------------------------------------------------

    async def account(self, tenant: str, account_id: str) -> AccountFigures | None:
        """The account; None when it is cold and must be loaded from the ledger."""
        answer = orjson.loads(await self._account([self.keys.account(tenant, account_id)], []))
        parts = [part.encode() for part in answer]
        return figures_of(dict(zip(parts[::2], parts[1::2], strict=True)))

    async def month(
        self, tenant: str, user_id: str, month: str
    ) -> tuple[MonthProjection, MonthProjection]:
        """The counters of a member and of the organisation for one month."""
        names = ("limit", f"used:{month}", "active", f"held:{month}", "overage")
        counters = []
        for key in (self.keys.member(tenant, user_id), self.keys.organization(tenant)):
            limit, *figures, overage = await self.ask(self.redis.hmget(key, names))
            counters.append(
                month_of(
                    month,
                    [
                        b"" if overage == b"1" else limit or b"",
                        *(figure or b"0" for figure in figures),
                    ],
                )
            )
        return counters[0], counters[1]

    async def free_used(self, identity: Identity) -> int | None:
        """What was drawn from a session's shared allowance; None when it is cold."""
        key = self.keys.free(identity.tenant, identity.free_key or "")
        used = await self.ask(self.redis.hget(key, "used"))
        return None if used is None else int(used)

    async def load_account(
        self,
        tenant: str,
        account_id: str,
        found: AccountRecord,
        *,
        asserting: bool = False,
        now_ms: int = 0,
    ) -> bool:
        """Puts a cold account into Redis; False while its partition recovers from a loss, in
        which only who is ``asserting`` sessions loads anything.

        Its versions begin at ``now_ms``, in epoch milliseconds, above all that it had before
        Redis forgot it: processes that have shown it all the time find that they missed some.

        An account leaves Redis only after a day without a live session, and is loaded
        only while the partition's outbox holds nothing older than that; so what Postgres
        says when it is loaded is complete.
        """
        fields: dict[str, str | int] = {"balance": found.balance_micros, "position": found.position}
        fields["version"] = now_ms
        holds = found.open_holds
        if holds:
            reserved_micros = sum(hold.amount_micros for hold in holds)
            fields |= {"held": reserved_micros, "reserved": reserved_micros}
            fields |= {"holds": len(holds), "live": len(holds)}
            fields |= {f"h:{hold.hold_id}": 1 for hold in holds}
        for session in found.recorded:
            fields[f"i:{session.session_id}"] = session.charged_micros
        names = (self.keys.account(tenant, account_id), self.keys.applied(tenant, account_id))
        return await self._load_counter(tenant, names, fields, found.recent_entry_ids, asserting)

    async def load_month(
        self, tenant: str, key: str, fields: dict[str, str | int], *, asserting: bool = False
    ) -> bool:
        """Puts a cold counter of a member, an organisation or free time into Redis; answers
        as ``load_account`` does."""
        return await self._load_counter(tenant, (key, f"{key}:applied"), fields, (), asserting)

    async def _load_counter(
        self,
        tenant: str,
        names: tuple[str, str],
        fields: dict[str, str | int],
        entry_ids: Sequence[str],
        asserting: bool,
    ) -> bool:
        partition = self.keys.partition(tenant)
        keys = [*names, self.keys.epoch(partition), self.keys.recovering(partition)]
        keys += [self.keys.unsettled(partition), self.keys.contained(names[0])]
        flat = [part for field in fields.items() for part in field]
        epoch = f"empty:{self.node}:{secrets.token_hex(4)}"
        times = (storage_limits.RECOVERY_MS, storage_limits.LOST_SESSIONS_AFTER_MS)
        arguments = [storage_limits.ACCOUNT_IDLE_MS, epoch, *times, int(asserting), len(fields)]
        return int(await self._load(keys, [*arguments, *flat, *entry_ids])) >= 0

    async def is_recovering(self, tenant: str) -> bool:
        """Whether the tenant's partition recovers from a loss: nothing can be loaded yet."""
        return await self.is_warm(self.keys.recovering(self.keys.partition(tenant)))

    async def is_warm(self, key: str) -> bool:
        """Whether a counter is in Redis."""
        return bool(await self.ask(self.redis.exists(key)))

    async def oldest_record(self, tenant: str) -> tuple[str, Oldest | None]:
        """The epoch of the tenant's partition, and the oldest record in its outbox; None: it is
        empty."""
        partition = self.keys.partition(tenant)
        keys = [self.keys.outbox(partition), self.keys.epoch(partition)]
        epoch, *answer = await self._oldest(keys, [])
        if not answer:
            return epoch.decode(), None
        age_ms, entry_id, fields = answer
        pairs = dict(zip(fields[::2], fields[1::2], strict=True))
        oldest = Oldest(made_at(entry_id, pairs), int(age_ms))
        return epoch.decode(), oldest

    async def credit(
        self, tenant: str, account_id: str, entry_id: str, micros: int, reason: str, now_ms: int
    ) -> bool:
        """Applies a ledger entry that Postgres has, once. False: the account is not here."""
        keys = [self.keys.account(tenant, account_id), self.keys.applied(tenant, account_id)]
        channel = self.keys.channel(tenant, account_id)
        remembered = (
            storage_limits.ENTRIES_REMEMBERED_MIN,
            storage_limits.SPENDS_REMEMBERED_MS,
            storage_limits.ACCOUNT_IDLE_MS,
        )
        answer = await self._credit(
            keys, [entry_id, micros, now_ms, self.publish, channel, reason, *remembered]
        )
        return bool(int(answer[0]))

    async def change_limit(
        self, tenant: str, user_id: str | None, limit_minutes: int | None, *, overage: bool
    ) -> None:
        """Changes a month's limit of a member, or (None) of the organisation itself."""
        key = self.keys.member(tenant, user_id) if user_id else self.keys.organization(tenant)
        limit = "" if limit_minutes is None else limit_minutes
        channel = self.keys.limits_channel(tenant)
        await self._limit([key], [limit, int(overage), self.publish, channel])

    async def tell(self, tenant: str, account_id: str, message: dict[str, Any]) -> None:
        """Tells every process that serves an account."""
        channel = self.keys.channel(tenant, account_id)
        await self.ask(self.redis.execute_command(self.publish, channel, orjson.dumps(message)))  # type: ignore[no-untyped-call]

    # --- Processes -----------------------------------------------------------------

    async def beat(self, now_ms: int, redis_ms: float) -> Beat:
        """Proves that this process lives, which takes the time of Redis for ``redis_ms``."""
        return beat_of(await self._beat([NODES, CLOCK], [self.node, now_ms, redis_ms]))

    async def look(self, *, ask: bool) -> Look:
        """What those who live say of the time; with ``ask`` they are asked to say it now."""
        arguments = [int(ask), self.publish, LOOK_CHANNEL]
        return look_of(await self._look([NODES, CLOCK], arguments))

    async def forget_node(self, node: str) -> None:
        """Removes a process whose sessions were all swept, or which has none."""
        await self.ask(self.redis.zrem(NODES, node))

    async def sessions_of_node(self, node: str) -> AsyncIterator[tuple[str, str]]:
        """The sessions that a process has sockets of: tenant and id."""
        for partition in range(self.keys.partitions):
            for member in await self.ask(self.redis.smembers(self.keys.node(partition, node))):
                tenant, _, session_id = member.decode().rpartition("/")
                yield tenant, session_id

    async def depart(self, tenant: str, session_id: str, node: str) -> None:
        """Takes a process off a session that others serve on."""
        await self.ask(self.redis.srem(self.keys.sockets(tenant, session_id), node))
        await self.leave(tenant, session_id, node)

    async def retreat(self, tenant: str, session_id: str) -> bool:
        """Takes this process off a session that it has joined and could not serve; False: no
        other one serves it, and this one has to look after it."""
        keys = self.keys
        names = [
            keys.sockets(tenant, session_id),
            keys.node(keys.partition(tenant), self.node),
            keys.graces(keys.partition(tenant)),
        ]
        return bool(await self._retreat(names, [self.node, session_key(tenant, session_id)]))

    async def leave(self, tenant: str, session_id: str, node: str) -> None:
        """Forgets that a process had sockets of a session that has ended."""
        keys = self.keys
        member = f"{tenant}/{session_id}"
        await self.ask(self.redis.srem(keys.node(keys.partition(tenant), node), member))

    async def outbox(self) -> tuple[int, int | None]:
        """Entries of all outboxes, and when the oldest was appended, by Redis's own clock;
        None: there is none."""
        outboxes = [self.keys.outbox(partition) for partition in range(self.keys.partitions)]
        total, oldest = 0, []
        # A few at a time, so that others have their turn between the answers.
        for first in range(0, len(outboxes), storage_limits.OUTBOXES_PER_PIPELINE):
            asked = outboxes[first : first + storage_limits.OUTBOXES_PER_PIPELINE]
            async with self.redis.pipeline(transaction=False) as pipeline:
                for outbox in asked:
                    pipeline.xlen(outbox)
                lengths = await self.ask(pipeline.execute())
            filled = [outbox for outbox, length in zip(asked, lengths, strict=True) if length]
            if not filled:
                continue
            total += sum(lengths)
            async with self.redis.pipeline(transaction=False) as pipeline:
                for outbox in filled:
                    pipeline.xrange(outbox, count=1)
                answers = await self.ask(pipeline.execute())
            oldest += [appended_at(rows[0][0]) for rows in answers if rows]
        return total, min(oldest) if oldest else None

    async def written_until(self) -> list[int | None]:
        """The instant of the oldest record in each partition's outbox; None: it is empty.

        Everything that was decided before is in Postgres. When that was the entry says, in
        cluster time; its id follows Redis's own clock.
        """
        async with self.redis.pipeline(transaction=False) as pipeline:
            for partition in range(self.keys.partitions):
                pipeline.xrange(self.keys.outbox(partition), count=1)
            answers = await self.ask(pipeline.execute())
        return [decided_at(*rows[0]) if rows else None for rows in answers]

    async def graces(self, until_ms: int) -> AsyncIterator[tuple[str, str]]:
        """Sessions whose grace ended at ``until_ms`` or before: tenant and id."""
        for partition in range(self.keys.partitions):
            key = self.keys.graces(partition)
            for member in await self.ask(self.redis.zrangebyscore(key, "-inf", until_ms)):
                tenant, _, session_id = member.decode().rpartition("/")
                yield tenant, session_id

    async def ping(self) -> None:
        """Whether Redis answers, the whole of it. Raises :class:`LiveError`."""
        await self.ask(self.redis.ping())

    async def ask(self, command: Any) -> Any:
        """The answer to one command, or :class:`LiveError`."""
        try:
            async with asyncio.timeout(limits.REDIS_TIMEOUT_MS / 1000):
                return await command
        except (RedisError, OSError, TimeoutError) as error:
            raise LiveError(str(error) or type(error).__name__) from error


def _outcome(step: Step, answer: Any) -> Outcome:
    try:
        return _read_outcome(step, answer)
    except Exception as error:
        log.exception("answer_not_read", session=step.before.key)
        return Outcome(reply=None, failed=repr(error), unread=True)


def _read_outcome(step: Step, answer: Any) -> Outcome:
    if isinstance(answer, Exception):
        # Out of memory, read only, still loading: one batch, but each for itself.
        return Outcome(reply=None, failed=str(answer) or type(answer).__name__)
    status, detail, _, counters, bumped, _ = answer
    if status == b"cold":
        return Outcome(reply=None, cold=tuple(detail.decode().split(",")))
    if status in {b"gone", b"full", b"outdated", b"crowded"}:
        return Outcome(
            reply=None,
            gone=status == b"gone",
            full=status == b"full",
            outdated=status == b"outdated",
            crowded=status == b"crowded",
        )
    change = None
    if bumped:
        gross, reserved, version = counters[2]
        change = Change(int(version), int(gross), int(reserved))
    entry_id = detail.decode() if status == b"ok" else ""
    reply, held = reply_of(step, answer), status == b"held"
    return Outcome(reply=reply, change=change, entry_id=entry_id, held=held)
