"""Puts back reported minutes that Redis has lost.

No process serves such a session, so none asserts it: only Postgres has what a replica lacks. The
session's next minute would bring it back, but perhaps there is none, and meanwhile others would use
the month's minutes a second time.
"""

import structlog
from msgspec.structs import replace

from protocol.metering.session import SessionState, Standing, segments_in_order, unstarted
from protocol.metering.states import Phase
from protocol.metering.terms import MINUTE_MS
from protocol.wire.errors import ServiceError
from server import limits as server_limits
from server.counters.loading import Loader
from server.recovery.session_pages import session_pages
from server.runtime.isolation import AWAY, for_each
from storage import limits as storage_limits
from storage.postgres.records import Records
from storage.postgres.usage import Usage
from storage.redis.reported_minutes import MinuteReporter, ReportedStep
from storage.rows.sessions import ReportedSession, SessionMinute

log = structlog.get_logger()


class ReportedSessions:
    """Brings to Redis the reported minutes that the record has."""

    def __init__(self, records: Records, loader: Loader) -> None:
        self.records = records
        self.usage = Usage.over(records)
        self.loader = loader
        self.live = loader.live
        self.clock = loader.clock
        self._reporter = MinuteReporter(loader.live)

    async def bring(self) -> int:
        """Brings the minutes; returns how many sessions lacked some.

        Raises ``LiveError`` and ``UnavailableError``. The call may be repeated.
        """
        # Before Postgres is read: where Postgres is behind, it may lack an end that Redis has
        # forgotten.
        behind = await self.loader.behind(storage_limits.ACCOUNT_IDLE_MS)
        count = 0
        failures: list[Exception] = []

        async def bring(found: tuple[str, list[ReportedSession]]) -> None:
            nonlocal count
            count += await self._bring_of_tenant(*found)

        async for page in session_pages(self.records.reported_sessions):
            by_tenant: dict[str, list[ReportedSession]] = {}
            for session in page:
                if session.minutes and self.live.keys.partition(session.tenant) not in behind:
                    by_tenant.setdefault(session.tenant, []).append(session)
            try:
                await for_each("reported session", by_tenant.items(), bring)
            except AWAY:
                raise
            except Exception as error:
                failures.append(error)  # the other pages come first
        if count:
            log.warning("reported_sessions_recovered", sessions=count)
        if failures:
            raise failures[0]
        return count

    async def _bring_of_tenant(self, tenant: str, recorded: list[ReportedSession]) -> int:
        count = 0
        for first in range(0, len(recorded), storage_limits.CLAIMS_PER_PIPELINE_MAX):
            part = recorded[first : first + storage_limits.CLAIMS_PER_PIPELINE_MAX]
            known = await self.live.sessions(tenant, [one.session_id for one in part])
            here = {session.identity.session_id: session for session in known}
            for one in part:
                session = here.get(one.session_id)
                if session is None or session.standing.minutes_kept < one.minutes:
                    count += await self._bring(one, session)
        return count

    async def _bring(self, recorded: ReportedSession, known: SessionState | None) -> bool:
        """Brings one session; returns whether Redis changed.

        Sessions that sockets meter are put back by their processes. Sessions that were silent for
        long are ended as lost sessions.
        """
        tenant, session_id = recorded.tenant, recorded.session_id
        row = await self.records.session(tenant, session_id)
        if row is None or row.state != "live" or row.started_at is None:
            return False
        if known is not None and not _stands(known):
            return False
        before = unstarted(Phase.PAUSED, row.started_at, 0)
        before = before if known is None else known.standing
        minutes = await self.usage.session(tenant, session_id)
        lost = tuple(one for one in minutes if one.minute >= before.minutes_kept)
        if [one.minute for one in lost] != list(range(before.minutes_kept, len(minutes))):
            return False  # one of them is still on its way to the record
        standing = with_minutes(before, lost)
        until = standing.at + server_limits.REPORTED_SILENCE_MS_MAX
        if not lost or until <= self.clock.now():
            return False
        step = ReportedStep(
            identity=row.identity if known is None else known.identity,
            standing=_put_back(standing, before.version + 1, until),
            is_first=known is None,
            is_beyond_cap=False,
            minute_at=None,
            month="",
            minutes={one.started_at: one.minute for one in lost},
            earlier=tuple(one.month for one in lost),
            records=(),
            basis=None,
            at=self.clock.now(),
            kept_ms=server_limits.REPORTED_SILENCE_MS_MAX + storage_limits.ENDED_SESSION_KEPT_MS,
        )
        return await self._make(step)

    async def _make(self, step: ReportedStep) -> bool:
        for _ in range(server_limits.LOADS_PER_STEP_MAX):
            verdict = await self._reporter.track(step)
            if verdict.status != "cold":
                return verdict.status == "ok"
            await self.loader.load(step.identity, verdict.detail.split(","), asserting=True)
        raise ServiceError("Redis does not keep the counters")


def with_minute(standing: Standing, minute_at: int, seconds: int) -> Standing:
    """The standing after one more minute that the client counted."""
    elapsed_ms = standing.minutes_kept * MINUTE_MS + seconds * 1000
    return replace(
        standing,
        elapsed_ms=elapsed_ms,
        settled_ms=elapsed_ms,
        minutes_kept=standing.minutes_kept + 1,
        at=max(standing.at, minute_at + seconds * 1000),
        run_at=minute_at,
        segments=segments_in_order((*standing.segments, (minute_at, minute_at + seconds * 1000))),
    )


def with_minutes(standing: Standing, minutes: tuple[SessionMinute, ...]) -> Standing:
    """The standing of a session after several more minutes, in their order."""
    for minute in minutes:
        standing = with_minute(standing, minute.started_at, minute.seconds)
    return standing


def _stands(session: SessionState) -> bool:
    """Whether no socket meters the session, and it has not ended.

    Only then its client counts.
    """
    identity, standing = session.identity, session.standing
    is_whole = standing.settled_ms <= standing.minutes_kept * MINUTE_MS
    return identity.is_reported and standing.phase is Phase.PAUSED and is_whole


def _put_back(standing: Standing, version: int, grace_until: int) -> Standing:
    at = standing.at
    return replace(standing, version=version, minute_at=at, lost_at=at, grace_until=grace_until)
