"""The step pipeline: carries the steps of this process's sessions to Redis.

Steps that fall due together go in one pipeline (a batch), and few batches are on their way at once.
So when thousands of sessions lose their sockets together, Redis is not asked for more than it can
do before the deadline.

If a counter is cold, the pipeline loads it and then makes the step. If Redis does not answer, the
meter learns that, and asks again after a wait that doubles. The pipeline repeats nothing that Redis
might have done: a meter asks from the version that it knows, so the reply contains any step that
was made meanwhile.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from typing import Protocol, TypeVar

import structlog
from redis.exceptions import RedisError

from protocol import limits
from protocol.metering.response_time import ResponseTime
from protocol.metering.session import Identity, SessionState
from protocol.metering.steps import Step
from protocol.wire.errors import ErrorCode, PeerError, ProtocolError, ServiceError
from server import limits as server_limits
from server.counters.loading import Loader
from server.counters.recall import are_minutes_unanswered, holders_silent, is_unanswered
from server.runtime.clock import Clock
from server.runtime.isolation import failed, isolated
from server.runtime.metrics import Metrics
from server.runtime.turns import Turns
from storage import limits as storage_limits
from storage.redis.live import Live, LiveError, StepOutcome
from storage.redis.spending import AccountName

log = structlog.get_logger()

Item = TypeVar("Item")


class StepSource(Protocol):
    """The source of steps: a local session of the registry."""

    node: str
    """The process in whose name the steps are made."""
    failures: int
    """Attempts in a row without an answer."""

    def free_day(self) -> tuple[int, int] | None:
        """The day of the start, as (begin, end), for daily free time."""

    def answered(self, step: Step, outcome: StepOutcome) -> None:
        """Takes the reply: the step was made, or it was not."""

    def unanswered(self, error: ProtocolError, *, made: bool | None) -> None:
        """Takes an error; ``made``: False, or None if that is unknown."""


class StepPipeline:
    """The steps of a process that wait or are on their way."""

    def __init__(
        self,
        live: Live,
        loader: Loader,
        clock: Clock,
        metrics: Metrics,
        turns: Turns | None = None,
    ) -> None:
        self.metrics = metrics
        self.turns = turns or Turns()
        self.live = live
        self.loader = loader
        self.clock = clock
        self.restore: Callable[[SessionState], Awaitable[None]] | None = None
        """Puts back a session that Redis has lost; see ``server.recovery.reassertion``."""
        self._waiting: dict[object, list[tuple[StepSource, Step]]] = {}
        """Steps by their shard of Redis. A shard that does not answer holds up no other shard."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled: set[object] = set()
        self._sent: Counter[object] = Counter()
        """Batches that a shard has not answered."""
        self._response_times: dict[object, ResponseTime] = {}
        """Response time of each shard: one entry for each master."""

    def response_ms(self, tenant: str) -> int:
        """Time within which nearly every reply to a tenant arrives (ms)."""
        found = self._response_times.get(self.live.shard(tenant))
        return 0 if found is None else found.bound_ms

    def ask(self, source: StepSource, step: Step) -> None:
        """Makes the step, in one batch with the others of this turn."""
        shard = self.live.shard(step.before.identity.tenant)
        self._waiting.setdefault(shard, []).append((source, step))
        self._schedule(shard)

    def _schedule(self, shard: object) -> None:
        is_free = (
            shard not in self._scheduled and self._sent[shard] < server_limits.CLAIM_PIPELINES_MAX
        )
        if is_free and self._waiting.get(shard):
            self._scheduled.add(shard)
            asyncio.get_running_loop().call_soon(self._send, shard)

    async def idle(self) -> None:
        """Waits until no step waits or is on its way."""
        while any(self._waiting.values()) or self._tasks or self.turns.busy:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)

    @property
    def waiting(self) -> int:
        """Number of steps that wait plus batches that are on their way."""
        return sum(map(len, self._waiting.values())) + len(self._tasks)

    def _send(self, shard: object) -> None:
        self._scheduled.discard(shard)
        waiting = self._waiting.pop(shard, [])
        if len(waiting) > storage_limits.CLAIMS_PER_PIPELINE_MAX:
            waiting = _in_turns(waiting)
        while waiting and self._sent[shard] < server_limits.CLAIM_PIPELINES_MAX:
            batch = waiting[: storage_limits.CLAIMS_PER_PIPELINE_MAX]
            del waiting[: len(batch)]
            by_node: dict[str, list[tuple[StepSource, Step]]] = {}
            for source, step in batch:
                by_node.setdefault(source.node, []).append((source, step))
            for node, part in by_node.items():
                self._sent[shard] += 1
                task = asyncio.create_task(self._make(part, node, shard))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if waiting:
            self._waiting[shard] = waiting

    async def _make(self, batch: list[tuple[StepSource, Step]], node: str, shard: object) -> None:
        response_time = self._response_times.setdefault(shard, ResponseTime())
        began_at = self.clock.now()
        try:
            with self.metrics.claim_latency.time():
                outcomes = await self.live.commit([step for _, step in batch], node)
            response_time.measured(self.clock.now() - began_at)
        except LiveError as error:
            response_time.measured(limits.REDIS_TIMEOUT_MS)
            self._fail(batch, self._waiting.pop(shard, []), error)
            return
        except Exception:
            # This is our own bug, and no single step's fault. Each source must still get an answer.
            failed("claims", steps=len(batch))
            for source, _ in batch:
                _tell_unanswered(source, _no_answer(), made=None)
            return
        finally:
            self._sent[shard] -= 1
            self._schedule(shard)
        mends: dict[AccountName, list[Awaitable[None]]] = {}
        answered: dict[AccountName, list[tuple[StepSource, Step, StepOutcome]]] = {}
        for (source, step), outcome in zip(batch, outcomes, strict=True):
            name = _account_of(step)
            if outcome.reply is None:
                mend = self._mend(source, step, outcome, node)
                mends.setdefault(name, []).append(mend)
            elif outcome.reply.refused_by and outcome.held and step.insists:
                mends.setdefault(name, []).append(self._refuse(source, step, outcome))
            else:
                answered.setdefault(name, []).append((source, step, outcome))
        for name, answers in answered.items():
            self.turns.run((self, name), _tell_answers(answers))
        # After a loss in Redis these may be all the sessions. No session waits for the one before
        # it, nor for another account's.
        due = _round_robin(mends.values())
        for first in range(0, len(due), server_limits.STEPS_MENDED_AT_ONCE_MAX):
            await asyncio.gather(*due[first : first + server_limits.STEPS_MENDED_AT_ONCE_MAX])

    def _fail(
        self,
        batch: list[tuple[StepSource, Step]],
        behind: list[tuple[StepSource, Step]],
        error: LiveError,
    ) -> None:
        """Fails an unanswered batch and the steps that wait behind it.

        The steps behind fail now, not after another timeout.
        """
        log.warning("claims_unanswered", steps=len(batch), behind=len(behind), error=str(error))
        unanswered: dict[AccountName, list[tuple[StepSource, bool | None]]] = {}
        for source, step in batch:
            unanswered.setdefault(_account_of(step), []).append((source, None))
        for source, step in behind:
            # The step was not sent now, but an earlier attempt may have been made.
            made = None if source.failures else False
            unanswered.setdefault(_account_of(step), []).append((source, made))
        for name, sources in unanswered.items():
            self.turns.run((self, name), _tell_all(sources))

    async def _refuse(self, source: StepSource, step: Step, outcome: StepOutcome) -> None:
        """Refuses a step that only other sessions' holds prevent.

        The refusal is final once all holders have answered the recall. While a holder has not
        answered, enough may be left, so the error allows another try.
        """
        identity = step.before.identity
        limit = outcome.reply.refused_by if outcome.reply is not None else None
        try:
            is_silent = await self._are_holders_silent(identity, limit)
        except LiveError:
            is_silent = True
        if is_silent:
            _tell_unanswered(source, holders_silent(), made=False)
        elif not isolated("claim", source.answered, step, outcome):
            _tell_unanswered(source, _no_answer(), made=None)

    async def _are_holders_silent(self, identity: Identity, limit: str | None) -> bool:
        """Whether a session on the counter still holds more than it needs.

        Such a session has been recalled long enough ago to have answered. ``limit`` is ``credits``
        or a month's limit. Raises ``LiveError``.
        """
        now_ms = self.clock.now()
        if limit == "credits":
            name = AccountName(identity.tenant, identity.account_id)
            return await is_unanswered(self.live, name, now_ms)
        user_id = identity.user_id if limit == "member_minutes" else None
        return await are_minutes_unanswered(self.live, identity.tenant, user_id, now_ms)

    async def _mend(self, source: StepSource, step: Step, outcome: StepOutcome, node: str) -> None:
        """Loads what the step needs, then makes the step."""
        try:
            for _ in range(server_limits.LOADS_PER_STEP_MAX):
                await self._bring(step, outcome, source)
                (outcome,) = await self.live.commit([step], node)
                if outcome.reply is not None:
                    source.answered(step, outcome)
                    return
            raise ServiceError("Redis does not keep the counters")
        except LiveError as error:
            log.warning("claim_unanswered", error=str(error))
            _tell_unanswered(source, _no_answer(), made=None)
        except ProtocolError as error:
            _tell_unanswered(source, error, made=False)
        except RedisError as error:
            # Redis refuses writes, or is full: handled as if Redis did not answer.
            log.warning("claim_failed", error=str(error))
            _tell_unanswered(source, _takes_nothing(), made=False)
        except Exception:
            # This is our own bug, but the source must still get an answer.
            failed("claim")
            _tell_unanswered(source, _takes_nothing(), made=None)

    async def _bring(self, step: Step, outcome: StepOutcome, source: StepSource) -> None:
        """Loads cold counters, or puts back a session that Redis has lost.

        Raises the error of a step that cannot be made now.
        """
        if outcome.unread:
            raise LiveError(outcome.failed)
        if outcome.failed:
            log.warning("claim_failed", error=outcome.failed)
            raise _takes_nothing()
        if outcome.outdated:
            raise ServiceError(
                "the preparation of this session has just changed; start the session again"
            )
        if outcome.full:
            raise ServiceError("too many records wait for PostgreSQL: no session can start now")
        if outcome.crowded:
            kind, most = step.before.identity.kind, step.before.identity.terms.max_live_sessions
            raise PeerError(
                ErrorCode.RATE_LIMITED,
                f"kind: a user may have at most {most} live sessions of {kind!r} at a time",
            )
        if outcome.gone:
            if self.restore is None:
                raise ServiceError("the session store has lost the session")
            await self.restore(step.before)
            return
        await self.loader.load(step.before.identity, outcome.cold, source.free_day())


def _no_answer() -> ServiceError:
    return ServiceError("the session store does not answer")


def _in_turns(waiting: list[tuple[StepSource, Step]]) -> list[tuple[StepSource, Step]]:
    """Orders steps so that the accounts take turns.

    No step waits behind all the steps of another account.
    """
    by_account: dict[AccountName, list[tuple[StepSource, Step]]] = {}
    for one in waiting:
        by_account.setdefault(_account_of(one[1]), []).append(one)
    return _round_robin(by_account.values())


def _round_robin(queues: Iterable[list[Item]]) -> list[Item]:
    rounds = itertools.zip_longest(*queues)
    return [item for one in rounds for item in one if item is not None]


def _tell_answers(answers: list[tuple[StepSource, Step, StepOutcome]]) -> Iterator[None]:
    for source, step, outcome in answers:
        if not isolated("claim", source.answered, step, outcome):
            # Redis made the step, but the session that it left is not known here. The source asks
            # again, and the next reply shows the session.
            _tell_unanswered(source, _no_answer(), made=None)
        yield


def _tell_all(sources: list[tuple[StepSource, bool | None]]) -> Iterator[None]:
    for source, made in sources:
        _tell_unanswered(source, _no_answer(), made=made)
        yield


def _account_of(step: Step) -> AccountName:
    identity = step.before.identity
    return AccountName(identity.tenant, identity.account_id)


def _takes_nothing() -> ServiceError:
    return ServiceError("the session store accepts no writes now")


def _tell_unanswered(source: StepSource, error: ProtocolError, *, made: bool | None) -> None:
    isolated("unanswered", lambda: source.unanswered(error, made=made))


def retry_after_ms(failures: int) -> int:
    """How long to wait after this number of attempts without an answer."""
    doubled_ms = server_limits.CLAIM_RETRY_MS_MIN << min(failures - 1, 10)
    return min(server_limits.CLAIM_RETRY_MS_MAX, doubled_ms)


class Retries:
    """Failed work by its name, and when each may be tried again.

    The wait doubles with each failure.
    """

    def __init__(self) -> None:
        self._failed: dict[Hashable, tuple[int, int]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._failed

    def failed(self, name: Hashable, now_ms: int) -> None:
        """Notes one more failure."""
        failures = self._failed.get(name, (0, 0))[0] + 1
        self._failed[name] = (failures, now_ms + retry_after_ms(failures))

    def forget(self, name: Hashable) -> None:
        """Forgets the failures, because the work succeeded or was replaced."""
        self._failed.pop(name, None)

    def is_due(self, name: Hashable, now_ms: int) -> bool:
        """Whether the work has not failed, or may be tried again."""
        return self._failed.get(name, (0, now_ms))[1] <= now_ms
