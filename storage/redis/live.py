"""The live state: what Redis has and atomic steps change.

Redis here is the credit-control server of RFC 8506. Every operation is one Lua script
(``storage/redis/lua``); its method names the keys, encodes the arguments and decodes the answer.
The client library must not retry a mutation, because it would run the mutation again without
notice. A repetition is the caller's decision, and safe: a step carries the version that it was made
from, and an entry carries its id.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Container, Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from protocol import limits
from protocol.metering.session import Identity, SessionState
from protocol.metering.steps import Step
from storage import limits as storage_limits
from storage.redis.beats import Beat, ClusterView
from storage.redis.cluster import ELSEWHERE, UNANSWERED
from storage.redis.encoding import (
    appended_at,
    decided_at,
    encode_step,
    made_at,
    session_of,
)
from storage.redis.figures import AccountFigures
from storage.redis.keys import Keys
from storage.redis.live_counters import LiveCounters
from storage.redis.live_processes import LiveProcesses
from storage.redis.scripts import Call, LiveError, Script, connect
from storage.redis.step_outcomes import AccountChange, StepOutcome, outcome_of

__all__ = [
    "AccountChange",
    "AccountFigures",
    "Beat",
    "ClusterView",
    "FoundSession",
    "Live",
    "LiveError",
    "Oldest",
    "Script",
    "StepOutcome",
    "Waiting",
    "connect",
]

log = structlog.get_logger()


class FoundSession(msgspec.Struct, frozen=True):
    """A session that is in Redis."""

    session: SessionState
    notices: tuple[bytes, ...]
    """The kept notices, oldest first."""
    nodes: frozenset[str]
    """The processes that have sockets of the session."""
    farewell_at: int = 0
    """When the user last took leave of the session; 0: never."""
    joining: dict[str, int] = {}
    """Processes that have not confirmed a join, and when its socket asked. Such a process may have
    given up on the join before Redis noted it, so its heartbeats prove no time after that."""

    def proven_at(self, node: str, alive_at: int) -> int:
        """The last proof of life of a process's sockets.

        ``alive_at`` is the last one of the process.
        """
        return min(alive_at, self.joining.get(node, alive_at))


class Oldest(NamedTuple):
    """The oldest record of an outbox."""

    made_at: int
    """The instant of the step that appended it, in cluster time."""
    age_ms: int
    """The time since it was appended, by Redis's own clock, which also expires keys."""


class Waiting(NamedTuple):
    """What waits for Postgres in a partition."""

    epoch: str
    """The partition's epoch, which changes with each loss."""
    oldest: Oldest | None
    """The outbox's oldest record; None: the outbox is empty."""
    replayed: str
    """The newest record that was appended again after a loss; empty: none lately."""
    is_replaying: bool
    """Records that were appended again are still in the outbox."""


class Live(LiveCounters, LiveProcesses):
    """The live state, as one process (``node``) works on it."""

    def __init__(self, redis: Redis, keys: Keys, node: str) -> None:
        super().__init__(redis, keys, node)
        self._marks = itertools.count(1)
        """A number for each step that is sent; with the process's name it is unique."""
        self._commit = Script(redis, "commit")
        self._attach = Script(redis, "attach")
        self._farewell = Script(redis, "farewell")
        self._oldest = Script(redis, "oldest")
        self._prepare = Script(redis, "prepare")

    # --- Sessions ------------------------------------------------------------------

    async def commit(self, steps: Sequence[Step], node: str | None = None) -> list[StepOutcome]:
        """Makes the steps in one pipeline; returns outcomes in order.

        ``node`` is the process in whose name the steps are made: another one when a dead process is
        swept. Raises :class:`LiveError` when Redis does not answer. If a step cannot be encoded, or
        its answer cannot be decoded, only this step fails.
        """
        outcomes: dict[int, StepOutcome] = {}
        calls = []
        for index, step in enumerate(steps):
            if index and index % storage_limits.ANSWERS_PER_TURN == 0:
                await asyncio.sleep(0)
            try:
                calls.append(self._commit_call(step, node or self.node))
            except Exception as error:
                log.exception("step_not_encoded", session=step.before.key)
                outcomes[index] = StepOutcome(reply=None, failed=repr(error))
        if calls:
            sent = [step for index, step in enumerate(steps) if index not in outcomes]
            answered = await self._made(sent, calls)
            rest = iter(answered)
            return [outcomes.get(index) or next(rest) for index in range(len(steps))]
        return [outcomes[index] for index in range(len(steps))]

    async def _made(self, steps: Sequence[Step], calls: Sequence[Call]) -> list[StepOutcome]:
        answers: list[Any]
        try:
            async with asyncio.timeout(limits.REDIS_TIMEOUT_MS / 1000):
                answers = await self._pipeline(calls)
                missed = [
                    index
                    for index, call in enumerate(calls)
                    if not self._commit.answered(call, answers[index])
                ]
                if missed:
                    # Redis has lost its scripts, so none of these steps was made; the others were.
                    again = await self._pipeline([calls[index] for index in missed])
                    for index, answer in zip(missed, again, strict=True):
                        answers[index] = answer
                        self._commit.answered(calls[index], answer)
            for answer in answers:
                # A slot that moves to another Redis may have found no script once more.
                if isinstance(answer, (NoScriptError, *ELSEWHERE, *UNANSWERED)):
                    raise answer
        except (RedisError, OSError, TimeoutError) as error:
            raise LiveError(str(error) or type(error).__name__) from error
        return [outcome_of(step, answer) for step, answer in zip(steps, answers, strict=True)]

    async def _pipeline(self, calls: Sequence[Call]) -> list[Any]:
        commands = self._commit.commands(calls)
        if len(commands) == 1:
            try:
                return [await self.redis.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
            except NoScriptError as error:
                return [error]
        async with self.redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)

    def _commit_call(self, step: Step, node: str) -> Call:
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
        mark = f"{self.node}.{next(self._marks)}"
        argument = encode_step(step, node, mark, self.publish, keys)
        return names, [argument]

    async def attach(
        self,
        tenant: str,
        session_id: str,
        *,
        user_id: str = "",
        read_only: bool = False,
        watch: bool = False,
        asked_at: int = 0,
    ) -> FoundSession | None:
        """Attaches this process to a session; None: Redis lacks it.

        With ``user_id``, a session that has ended, or belongs to another user, is only read.
        ``read_only`` only reads the session; with ``watch``, the session's steps are then sent on
        the account's channel even if one process alone serves it. ``asked_at`` is when the socket
        asked to join; the caller confirms that join (``confirm_join``).
        """
        keys = self.keys
        fields, notices, nodes, farewell_at, joining = await self._attach(
            [
                keys.session(tenant, session_id),
                keys.notices(tenant, session_id),
                keys.sockets(tenant, session_id),
                keys.node(keys.partition(tenant), self.node),
            ],
            [
                "" if read_only else self.node,
                f"{tenant}/{session_id}",
                int(watch),
                user_id,
                asked_at,
            ],
        )
        if not fields:
            return None
        return FoundSession(
            session=session_of(fields),
            notices=tuple(reversed(notices)),
            nodes=frozenset(node.decode() for node in nodes),
            farewell_at=int(farewell_at),
            joining={
                node.decode(): int(at) for node, at in zip(joining[::2], joining[1::2], strict=True)
            },
        )

    async def farewell(self, identity: Identity, at_ms: int) -> None:
        """Tells all processes that the user took leave of a session.

        Processes that join later read it (``FoundSession.farewell_at``).
        """
        tenant, session_id = identity.tenant, identity.session_id
        channel = self.keys.channel(tenant, identity.account_id)
        key = self.keys.session(tenant, session_id)
        await self._farewell([key], [session_id, at_ms, self.publish, channel])

    async def confirm_preparation(
        self, tenant: str, session_id: str, preparation: str, expires_at: int
    ) -> Literal["ok", "exists", "unsettled"]:
        """Ensures that a prepared session starts as Postgres has it.

        ``exists``: the session has started without it. ``unsettled``: after a loss, the session may
        run while Redis lacks it.
        """
        keys, partition = self.keys, self.keys.partition(tenant)
        names = [keys.session(tenant, session_id), keys.prepared(tenant, session_id)]
        names += [keys.epoch(partition), keys.recovering(partition), keys.unsettled(partition)]
        arguments = [preparation, expires_at, storage_limits.START_MS_MAX]
        answer = await self._prepare(names, arguments)
        return cast(Literal["ok", "exists", "unsettled"], answer.decode())

    async def sessions(self, tenant: str, session_ids: Sequence[str]) -> list[SessionState]:
        """Returns the state of a tenant's sessions, without missing ones."""
        fields = ("identity", "standing", "grant", "final")
        async with self.redis.pipeline(transaction=False) as pipeline:
            for session_id in session_ids:
                pipeline.hmget(self.keys.session(tenant, session_id), fields)
            found = await self.ask(pipeline.execute())
        return [session_of(one) for one in found if one[0]]

    async def sessions_of_tenant(
        self, tenant: str, beside: Container[str] = ()
    ) -> AsyncIterator[list[SessionState]]:
        """Yields the state of a tenant's live sessions, a few at once.

        ``beside`` has the keys of sessions that are left out.
        """
        live, cursor = self.keys.live(self.keys.partition(tenant)), 0
        while True:
            scan = self.redis.sscan(
                live, cursor, match=f"{tenant}/*", count=storage_limits.PAGE_ROWS_MAX
            )
            cursor, found = await self.ask(scan)
            keys = [key for key in map(bytes.decode, found) if key not in beside]
            names = [key.rpartition("/")[2] for key in keys]
            for first in range(0, len(names), storage_limits.CLAIMS_PER_PIPELINE_MAX):
                part = names[first : first + storage_limits.CLAIMS_PER_PIPELINE_MAX]
                yield await self.sessions(tenant, part)
            if not cursor:
                return

    # --- Outboxes ------------------------------------------------------------------

    async def waiting(self, tenant: str) -> Waiting:
        """Returns what waits in the outbox of a tenant's partition."""
        return await self.waiting_in(self.keys.partition(tenant))

    async def waiting_in(self, partition: int) -> Waiting:
        """As ``waiting``, for a partition by its number."""
        keys = [self.keys.outbox(partition), self.keys.epoch(partition)]
        answer = await self._oldest([*keys, self.keys.replayed(partition)], [])
        epoch, replayed, waits, *entry = answer
        oldest = None
        if entry:
            age_ms, entry_id, fields = entry
            pairs = dict(zip(fields[::2], fields[1::2], strict=True))
            oldest = Oldest(made_at(entry_id, pairs), int(age_ms))
        return Waiting(epoch.decode(), oldest, replayed.decode(), bool(waits))

    async def outbox(self) -> tuple[int, int | None]:
        """Returns the number and oldest instant of all outboxes' entries.

        The instant is by Redis's own clock; None: there is no entry.
        """
        outboxes = [self.keys.outbox(partition) for partition in range(self.keys.partitions)]
        total, oldest = 0, []
        # A few at a time, so that other tasks run between the answers.
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
        """Returns each outbox's oldest record's instant; None: it is empty.

        Everything that was decided before that instant is in Postgres. The instant comes from the
        entry, in cluster time; the entry's id follows Redis's own clock.
        """
        async with self.redis.pipeline(transaction=False) as pipeline:
            for partition in range(self.keys.partitions):
                pipeline.xrange(self.keys.outbox(partition), count=1)
            answers = await self.ask(pipeline.execute())
        return [decided_at(*rows[0]) if rows else None for rows in answers]
