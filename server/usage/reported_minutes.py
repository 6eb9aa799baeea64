"""Reported minutes: sessions whose clients (existing applications) count each minute.

Such a client reports each minute that it has recorded. The server does not meter the session, so
between two minutes the session stands still: paused, without sockets, and with a grace of a day
that ends it if no more minutes arrive. To everything else it is a session like any other: it has a
receipt, it can be stopped, and a browser that opens a socket later goes on where the reports
stopped. Its state is that of the end of its last minute, and earlier minutes are whole ones, as
they are billed.

Reported minutes are the client's word. So only kinds are taken that count minutes and cost nothing:
credits move only for time that the server has measured, and time that the server meters is counted
once.
"""

import asyncio
import contextlib
from typing import NamedTuple

import msgspec
import structlog

from protocol import limits
from protocol.metering.records import MinuteUsed, Record
from protocol.metering.session import (
    Identity,
    SessionState,
    Standing,
    session_key,
    unstarted,
)
from protocol.metering.states import Phase
from protocol.metering.steps import StartBasis, minute_record, started_record
from protocol.metering.terms import MINUTE_MS, Terms
from protocol.wire.errors import (
    BadMessageError,
    ErrorCode,
    PeerError,
    ProtocolError,
    RefusedError,
    ServiceError,
)
from server import limits as server_limits
from server.access.principals import tenant_of
from server.counters.calendars import calendar
from server.counters.recall import are_minutes_unanswered, holders_silent
from server.gateway.preparations import basis_of_start
from server.process import Process
from server.recovery.reported_sessions import with_minute, with_minutes
from server.usage.months import Months
from storage import limits as storage_limits
from storage.postgres import records as record
from storage.postgres.usage import Usage
from storage.redis.live import LiveError
from storage.redis.reported_minutes import MinuteReporter, ReportedStep, ReportVerdict
from storage.rows.sessions import SessionMinute, SessionRow

log = structlog.get_logger()


class MeteredKindError(Exception):
    """The server meters this kind, so no client may report minutes."""


class MinuteReport(msgspec.Struct, frozen=True):
    """A minute as its client reports it."""

    user_id: str
    org_id: str | None
    account_id: str
    session_id: str
    kind: str
    minute_at: int
    """Start of the minute, by the wall clock; of two reports of one minute, the first counts."""
    seconds: int
    needs_preparation: bool
    """A backend must have prepared the session."""
    kinds: frozenset[str] | None = None
    """The only kinds that the client may start; None: any."""
    is_trusted: bool = False
    """A backend reports the minute: it may begin any number of sessions."""

    @property
    def tenant(self) -> str:
        """The tenant of the user."""
        return tenant_of(self.org_id, self.user_id)


class ReportResult(NamedTuple):
    """The result of a report."""

    minute: int | None
    """The minute's number in the session; None if the server meters the session."""
    duplicate: bool = False
    metered: bool = False


class _Known(NamedTuple):
    """A session before a minute: from Redis, from the record, or new."""

    identity: Identity
    standing: Standing | None
    minutes: dict[int, int]
    """Numbers, by their start, of minutes that are in the record and Redis has lost."""
    in_redis: bool
    basis: StartBasis | None = None
    """The data from which a new session was decided."""


class ReportedMinutes:
    """Takes reports, and ends sessions that were silent for too long."""

    def __init__(self, process: Process, usage: Usage, months: Months) -> None:
        self.process = process
        self.months = months
        self.usage = usage
        self._reporter = MinuteReporter(process.live)
        self._silent_at: dict[str, int] = {}
        """The instant at which each session reported here has been silent for too long."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, reported: MinuteReport) -> ReportResult:
        """Takes a minute, once.

        Raises ``bad_message`` for a minute that is too old or in the future, ``unknown_kind``,
        ``metered_kind``, ``forbidden``, ``session_ended``, ``limit_reached``, ``unavailable``, and
        ``rate_limited`` for a user who begins too many sessions.
        """
        _check_instant(reported.minute_at, self.process.clock.now())
        for _ in range(server_limits.REPORTED_MINUTE_ATTEMPTS_MAX):
            known = await self._known(reported)
            if isinstance(known, ReportResult):
                return known
            if known.standing is not None and _is_within_minute(known.standing):
                return ReportResult(None, duplicate=True, metered=True)
            step = await self._step(reported, known)
            verdict = await self._reporter.track(step)
            if verdict.status == "held":
                verdict = await self._recall(step)
            if verdict.status == "full":
                raise ServiceError("too many records wait for PostgreSQL already")
            if verdict.status == "cold":
                await self.process.loader.load(step.identity, verdict.detail.split(","))
            elif verdict.status != "stale":
                return await self._answer(step, verdict)
        raise ServiceError("the session changes too fast; send the minute again")

    # --- The session ---------------------------------------------------------------

    async def _known(self, reported: MinuteReport) -> _Known | ReportResult:
        tenant, session_id = reported.tenant, reported.session_id
        found = await self.process.live.attach(tenant, session_id, read_only=True)
        if found is not None:
            _check_owner(found.session.identity.user_id, reported)
            return await self._whole(found.session, reported)
        try:
            basis, row = await basis_of_start(self.process, tenant, session_id, reported.user_id)
            if row is None or row.state == "prepared":
                if not reported.is_trusted:
                    self.process.starts.take(tenant, reported.user_id)
                identity = self._new(reported, row)
                return _Known(identity, None, {}, in_redis=False, basis=basis)
            _check_owner(row.user_id, reported)
            if row.state == "ended":
                return _written_down(row, reported)
            if not row.is_reported or not _is_reportable(row.terms):
                raise ServiceError("the session is being restored")
            known = _restored(row, await self.usage.session(tenant, session_id))
            number = known.minutes.get(reported.minute_at)
            return known if number is None else ReportResult(number, duplicate=True)
        except record.UnavailableError as error:
            raise ServiceError("the record of sessions does not answer") from error

    async def _whole(self, session: SessionState, reported: MinuteReport) -> _Known | ReportResult:
        """The session in Redis, with recorded minutes that a replica lacks."""
        identity, standing = session.identity, session.standing
        known = _Known(identity, standing, {}, in_redis=True)
        if not identity.is_reported or standing.phase is Phase.ENDED or _is_within_minute(standing):
            return known
        lost: tuple[SessionMinute, ...] = ()
        # While Postgres is away, the outbox keeps the minute.
        with contextlib.suppress(record.UnavailableError):
            lost = await self._after(identity, standing.minutes_kept)
        for minute in lost:
            if minute.started_at == reported.minute_at:
                return ReportResult(minute.minute, duplicate=True)
            if minute.minute != standing.minutes_kept:
                raise ServiceError("the session is being restored")
            standing = with_minute(standing, minute.started_at, minute.seconds)
        return known._replace(standing=standing, minutes={at.started_at: at.minute for at in lost})

    async def _after(self, identity: Identity, kept: int) -> tuple[SessionMinute, ...]:
        """The recorded minutes after the first ``kept``: mostly none."""
        found = await self.usage.session(identity.tenant, identity.session_id, 1)
        if found and (lost := found[-1].minute + 1 - kept) > 1:
            found = await self.usage.session(identity.tenant, identity.session_id, lost)
        return tuple(one for one in found if one.minute >= kept)

    def _new(self, reported: MinuteReport, row: SessionRow | None) -> Identity:
        if row is None and reported.needs_preparation:
            raise PeerError(ErrorCode.FORBIDDEN, "only prepared sessions may be started")
        terms = row.terms if row is not None else self.process.rates.terms(reported.kind)
        if reported.kinds is not None and terms.kind not in reported.kinds:
            raise PeerError(ErrorCode.FORBIDDEN, "the token may not start this kind")
        if not _is_reportable(terms):
            raise MeteredKindError(
                f"kind: {terms.kind} costs credits or counts no minutes, so the server meters it"
            )
        return Identity(
            tenant=reported.tenant,
            session_id=reported.session_id,
            user_id=reported.user_id,
            org_id=reported.org_id,
            account_id=row.account_id if row is not None else reported.account_id,
            counterpart_id=row.counterpart_id if row is not None else None,
            kind=terms.kind,
            started_at=reported.minute_at,
            terms=terms,
            metadata=row.metadata if row is not None else None,
            is_reported=True,
        )

    async def _step(self, reported: MinuteReport, known: _Known) -> ReportedStep:
        identity = known.identity
        before = known.standing or unstarted(Phase.PAUSED, reported.minute_at, 0)
        now_ms = self.process.clock.now()
        standing = _after(before, reported, now_ms)
        cap_ms = identity.terms.session_cap_ms
        month = await self._month(identity, reported.minute_at)
        known_at = sorted(known.minutes, key=known.minutes.__getitem__)
        earlier = [await self._month(identity, minute_at) for minute_at in known_at]
        records: list[Record] = [] if known.standing else [started_record(identity)]
        records.append(_minute(identity, before.minutes_kept, reported, month))
        return ReportedStep(
            identity=identity,
            standing=standing,
            is_first=not known.in_redis,
            is_beyond_cap=0 < cap_ms < standing.elapsed_ms,
            minute_at=reported.minute_at,
            month=month,
            minutes={**known.minutes, reported.minute_at: before.minutes_kept},
            earlier=tuple(earlier),
            records=tuple(records),
            basis=known.basis,
            at=now_ms,
            kept_ms=server_limits.REPORTED_SILENCE_MS_MAX + storage_limits.ENDED_SESSION_KEPT_MS,
        )

    async def _recall(self, step: ReportedStep) -> ReportVerdict:
        """Recalls minutes that metered sessions merely hold, and tries the step again.

        The verdict is ``refused`` if all sessions have answered and still no minute is left. Raises
        ``unavailable`` if one has not answered.
        """
        identity, process = step.identity, self.process
        loop = asyncio.get_running_loop()
        async with process.registry.tenants.listening(identity) as freed:
            verdict = await self._reporter.track(msgspec.structs.replace(step, recall=True))
            over_at = loop.time() + limits.RECALL_WAIT_MS / 1000
            while verdict.status == "held":
                try:
                    async with asyncio.timeout_at(over_at):
                        await freed.wait()
                except TimeoutError:
                    break
                freed.clear()
                verdict = await self._reporter.track(step)
            else:
                return verdict
            verdict = await self._reporter.track(step)
        if verdict.status != "held":
            return verdict
        user_id = identity.user_id if verdict.detail == "member_minutes" else None
        now_ms = process.clock.now()
        if await are_minutes_unanswered(process.live, identity.tenant, user_id, now_ms):
            raise holders_silent()
        return ReportVerdict("refused", verdict.detail)

    async def _month(self, identity: Identity, at_ms: int) -> str:
        plan = await self.months.plan(identity.tenant, identity.user_id)
        return calendar(plan.timezone).month(at_ms)

    # --- The answer ----------------------------------------------------------------

    async def _answer(self, step: ReportedStep, verdict: ReportVerdict) -> ReportResult:
        match verdict.status:
            case "ok":
                await self._write(step, verdict.detail)
                self._expect(step)
                assert step.minute_at is not None
                return ReportResult(step.minutes[step.minute_at])
            case "duplicate":
                return ReportResult(int(verdict.detail), duplicate=True)
            case "metered":
                return ReportResult(None, duplicate=True, metered=True)
            case "ended" if verdict.detail != "1":
                return ReportResult(None, duplicate=True, metered=True)
            case "refused":
                raise RefusedError(
                    ErrorCode.LIMIT_REACHED,
                    f"the limit is used up: {verdict.detail}",
                    limit=verdict.detail,
                )
        raise RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")

    async def _write(self, step: ReportedStep, entry_id: str) -> None:
        """Writes the minute to Postgres at once, if possible.

        The next reader of the month then finds it there. Otherwise the minute is on its way in the
        outbox, and this process keeps it in case Redis loses it. To write it twice changes nothing.
        """
        try:
            await self.process.records.write(step.records)
        except (record.UnavailableError, record.RejectedError) as error:
            log.warning("reported_minute_not_written_yet", error=str(error))
            partition = self.process.live.keys.partition(step.identity.tenant)
            self.process.registry.unflushed.keep(partition, entry_id, step.records)

    # --- The end -------------------------------------------------------------------

    def _expect(self, step: ReportedStep) -> None:
        """Arranges the session's end for when it has been silent for long.

        Each session has one timer. If more minutes arrived before it fires, it waits on.
        """
        identity, until = step.identity, step.standing.grace_until
        assert until is not None
        key = session_key(identity.tenant, identity.session_id)
        if key in self._silent_at:
            self._silent_at[key] = until
        elif len(self._silent_at) < server_limits.SILENCES_MAX:
            self._silent_at[key] = until
            self._wait(key, until)

    def _wait(self, key: str, at: int) -> None:
        self.process.timers.deadline(at, lambda now_ms: self._fire(key, now_ms))

    def _fire(self, key: str, now_ms: int) -> None:
        silent_at = self._silent_at[key]
        if now_ms < silent_at:
            self._wait(key, silent_at)
            return
        del self._silent_at[key]
        task = asyncio.ensure_future(self._end(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, key: str) -> None:
        """Ends a session whose grace is over; the sweep covers failures."""
        tenant, _, session_id = key.rpartition("/")
        orphans = self.process.membership.orphans
        try:
            await orphans.adopt(tenant, session_id, self.process.node, None)
        except (LiveError, ProtocolError) as error:
            log.warning("silent_session_not_ended", session=key, error=str(error))

    async def idle(self) -> None:
        """Waits until no session is being ended here."""
        while self._tasks:
            await asyncio.gather(*self._tasks)


def _check_instant(minute_at: int, now_ms: int) -> None:
    if minute_at > now_ms + server_limits.REPORTED_MINUTE_AHEAD_MS_MAX:
        raise BadMessageError("minute_timestamp: must not be in the future")
    if minute_at < now_ms - server_limits.REPORTED_MINUTE_LATE_MS_MAX:
        raise BadMessageError("minute_timestamp: must not be older than a day")


def _check_owner(user_id: str, reported: MinuteReport) -> None:
    if user_id != reported.user_id:
        raise PeerError(ErrorCode.FORBIDDEN, "the session belongs to another user")


def _is_within_minute(standing: Standing) -> bool:
    """Whether sockets have metered a part of a minute.

    Then the sockets count the rest of that minute, too.
    """
    is_live = standing.phase is not Phase.ENDED
    return is_live and standing.settled_ms > standing.minutes_kept * MINUTE_MS


def _is_reportable(terms: Terms) -> bool:
    return terms.counts_minutes and terms.price_micros == 0


def _written_down(row: SessionRow, reported: MinuteReport) -> ReportResult:
    """The result for a session that has ended and left Redis.

    A minute within the session is in its record already.
    """
    assert row.started_at is not None
    assert row.ended_at is not None
    if row.started_at - MINUTE_MS < reported.minute_at <= row.ended_at:
        return ReportResult(None, duplicate=True, metered=True)
    raise RefusedError(ErrorCode.SESSION_ENDED, "the session has ended")


def _restored(row: SessionRow, minutes: tuple[SessionMinute, ...]) -> _Known:
    """The session from the record, after Redis came back without it.

    Raises ``unavailable`` while one of its minutes is still on its way, because a later number must
    not be used twice.
    """
    if [one.minute for one in minutes] != list(range(len(minutes))):
        raise ServiceError("the session is being restored")
    assert row.started_at is not None
    standing = with_minutes(unstarted(Phase.PAUSED, row.started_at, 0), minutes)
    known = {minute.started_at: minute.minute for minute in minutes}
    return _Known(row.identity, standing, known, in_redis=False)


def _after(before: Standing, reported: MinuteReport, now_ms: int) -> Standing:
    """The standing of the session after one more reported minute."""
    after = with_minute(before, reported.minute_at, reported.seconds)
    # A client's clock may be ahead; sessions stand in cluster time.
    at = min(after.at, now_ms)
    return msgspec.structs.replace(
        after,
        version=before.version + 1,
        at=at,
        minute_at=at,
        lost_at=at,
        grace_until=now_ms + server_limits.REPORTED_SILENCE_MS_MAX,
    )


def _minute(identity: Identity, number: int, reported: MinuteReport, month: str) -> MinuteUsed:
    return minute_record(
        identity,
        number,
        seconds=reported.seconds,
        started_at=reported.minute_at,
        month=month,
        counts=True,
        credits_micros=0,
        free_ms=0,
    )
