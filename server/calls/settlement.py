"""Two clocks: brings a session's charge to the provider's figure.

The session's own record stays as our clock had it. Beyond the kind's tolerance a further entry
corrects it: credits by an adjustment of the account, minutes by an adjustment of the open month.
What is charged further is what the balance and the limits of the moment cover. The rest is recorded
as uncollected, and never charged later: not as a debt, and not by a repetition.

A correction is noted in the record before it is made, under the name that it has in the ledger. So
a process that dies in between leaves it to the next one, which makes it with the same figures, and
a repeated settlement finds nothing to do.
"""

from typing import NamedTuple

import msgspec
import structlog

from protocol.metering.records import EntryPosted, SessionEnded
from protocol.metering.session import Identity
from protocol.metering.terms import MINUTE_MS, Terms, minutes_begun
from protocol.wire.errors import BadMessageError, ServiceError
from server.calls import limits as call_limits
from server.calls.billing import Billing
from server.calls.timeline import Timeline
from server.counters.calendars import calendar
from server.credits.outcomes import BalanceTooHighError, Spent
from server.process import Process
from storage.postgres.call_clocks import CallClocks
from storage.redis.spending import AccountName
from storage.rows.call_clocks import CallOfSession, Correction, ProviderDuration

log = structlog.get_logger()

KEPT_ENDS = ("limit", "operator")
"""Ends after which time is not charged, whatever a provider says."""


class Due(NamedTuple):
    """What a session must be charged beside its own record, in all."""

    target_ms: int
    """The time that it is charged for."""
    micros: int
    minutes: int
    reason: str
    uncollected_ms: int


class Settlement:
    """Settles the sessions of calls that have ended."""

    def __init__(self, process: Process, clocks: CallClocks) -> None:
        self.process = process
        self.clocks = clocks

    async def settle(
        self,
        name: tuple[str, str],
        call: CallOfSession,
        billing: Billing,
        line: Timeline,
        ended: SessionEnded | None,
        asked_ms: int | None = None,
    ) -> None:
        """Settles an ended session; ``name`` is its tenant and id.

        ``ended`` is the session's own record; None: it never began. ``asked_ms`` is what the
        provider said of all devices when it was asked. The call may be repeated. Raises
        ``ServiceError``, ``LiveError`` and ``UnavailableError``.
        """
        for _ in range(call_limits.SETTLEMENT_STEPS_MAX):
            known = await self.clocks.duration(*name)
            if known is not None and known.corrections and not known.corrections[-1].is_done:
                await self._make(known, billing)
                continue
            wanted = self._figures(name, call, billing, line, ended, known, asked_ms)
            due = self._due(wanted, billing, ended)
            wanted = msgspec.structs.replace(
                wanted,
                reason=due.reason,
                uncollected_ms=max(wanted.uncollected_ms, due.uncollected_ms),
            )
            micros, minutes = _open(wanted, due)
            if micros or minutes:
                wanted = await self._noted(wanted, billing, micros, minutes)
            elif known is not None and wanted == known:
                return
            if known is None and wanted.provider_ms is not None:
                drift_ms = abs(wanted.provider_ms - wanted.elapsed_ms)
                self.process.metrics.call_drift.labels(call.provider).observe(drift_ms / 1000)
            written = await self.clocks.put_duration(wanted)
            if written is not None and not (micros or minutes):
                return
        raise ServiceError("other processes settle the session as well")

    # --- What is due ---------------------------------------------------------------------

    def _figures(
        self,
        name: tuple[str, str],
        call: CallOfSession,
        billing: Billing,
        line: Timeline,
        ended: SessionEnded | None,
        known: ProviderDuration | None,
        asked_ms: int | None,
    ) -> ProviderDuration:
        """Both clocks as they are now, with what was corrected before."""
        now_ms = self.process.clock.now()
        began_at = known.started_at if known is not None else now_ms
        if line.stretches:
            began_at = line.stretches[0][0]
        if ended is not None:
            began_at = ended.started_at
        until = line.stretches[-1][1] if line.stretches else began_at
        if ended is not None:
            until = max(until, began_at, *(to_at for _, to_at in ended.segments))
        if asked_ms is None and known is not None:
            asked_ms = known.asked_ms
        return ProviderDuration(
            tenant=name[0],
            session_id=name[1],
            provider=call.provider,
            call_id=call.call_id,
            call_session=call.call_session,
            user_id=billing.user_id,
            # A page, or another name of the user, may have begun it: who paid is corrected.
            account_id=ended.account_id if ended is not None else billing.account_id,
            started_at=began_at,
            ended_at=until,
            elapsed_ms=ended.elapsed_ms if ended is not None else 0,
            facts_ms=line.total_ms,
            provider_ms=line.provider_ms,
            asked_ms=asked_ms,
            reason="",
            uncollected_ms=known.uncollected_ms if known is not None else 0,
            uncollected_micros=known.uncollected_micros if known is not None else 0,
            uncollected_minutes=known.uncollected_minutes if known is not None else 0,
            stretches=line.stretches,
            corrections=known.corrections if known is not None else (),
            version=known.version if known is not None else 0,
        )

    def _due(self, known: ProviderDuration, billing: Billing, ended: SessionEnded | None) -> Due:
        """What the session must be charged in all, beside its own record."""
        figure_ms = known.facts_ms if known.provider_ms is None else known.provider_ms
        elapsed_ms = known.elapsed_ms
        if ended is None:
            return Due(0, 0, 0, "not_started" if figure_ms else "", figure_ms)
        terms = ended.terms
        if ended.kind != billing.kind and billing.kind in self.process.rates.kinds:
            terms = self.process.rates.terms(billing.kind)
        target_ms, reason = _target_ms(figure_ms, elapsed_ms, terms, ended)
        uncollected_ms = max(0, figure_ms - target_ms) if reason in (*KEPT_ENDS, "cap") else 0
        if target_ms == elapsed_ms and terms == ended.terms:
            return Due(target_ms, 0, 0, reason, uncollected_ms)
        free_ms = _free_ms(terms, ended)
        micros = terms.cost_micros(target_ms, free_ms)
        if terms == ended.terms:
            micros -= terms.cost_micros(elapsed_ms, free_ms)
        else:
            micros, reason = micros - ended.credits_micros, reason or "kind"
        minutes = minutes_begun(target_ms) if terms.counts_minutes else 0
        minutes -= minutes_begun(elapsed_ms) if ended.terms.counts_minutes else 0
        return Due(target_ms, max(micros, -ended.credits_micros), minutes, reason, uncollected_ms)

    # --- Making corrections ----------------------------------------------------------------

    async def _noted(
        self, wanted: ProviderDuration, billing: Billing, micros: int, minutes: int
    ) -> ProviderDuration:
        """The record with one more correction, which is not made yet."""
        member = await self.process.loader.member(wanted.tenant, wanted.user_id)
        days, now_ms = calendar(member.timezone), self.process.clock.now()
        figure_ms = wanted.facts_ms if wanted.provider_ms is None else wanted.provider_ms
        whose = "the call's facts have" if wanted.provider_ms is None else "the provider counted"
        reason = (
            f"{wanted.reason}: {whose} {figure_ms / 1000:.3f} s, our clock "
            f"{wanted.elapsed_ms / 1000:.3f} s"
        )
        if days.month(wanted.ended_at) != days.month(now_ms):
            reason += f" in {days.month(wanted.ended_at)[:7]}"
        correction = Correction(
            entry_id=f"clock:{wanted.session_id}:{len(wanted.corrections)}",
            at=now_ms,
            month=days.month(now_ms),
            credits_micros=micros,
            minutes=minutes,
            reason=reason,
        )
        return msgspec.structs.replace(wanted, corrections=(*wanted.corrections, correction))

    async def _make(self, known: ProviderDuration, billing: Billing) -> None:
        """Makes the correction that is noted last, and notes what was collected."""
        correction = known.corrections[-1]
        minutes = await self._make_minutes(known, billing, correction)
        wanted_micros = correction.credits_micros
        if 0 < minutes < correction.minutes and wanted_micros > 0:
            # Time beyond the month's limit costs nothing either.
            wanted_micros = wanted_micros * minutes // correction.minutes
        elif minutes == 0 < correction.minutes:
            wanted_micros = min(0, wanted_micros)
        micros = await self._make_credits(known, correction, wanted_micros)
        made = msgspec.structs.replace(
            correction, minutes=minutes, credits_micros=micros, is_done=True
        )
        lacked_micros = correction.credits_micros - micros
        lacked_minutes = correction.minutes - minutes
        lacked_ms = 0
        if lacked_micros > 0 or lacked_minutes > 0:
            lacked_ms = self._lacked_ms(known, billing, lacked_micros, lacked_minutes)
        log.info(
            "call_corrected", session=known.session_id, micros=micros, minutes=minutes,
            uncollected_micros=max(0, lacked_micros), reason=correction.reason,
        )  # fmt: skip
        await self.clocks.put_duration(
            msgspec.structs.replace(
                known,
                corrections=(*known.corrections[:-1], made),
                uncollected_ms=known.uncollected_ms + lacked_ms,
                uncollected_micros=max(0, known.uncollected_micros + lacked_micros),
                uncollected_minutes=known.uncollected_minutes + lacked_minutes,
            )
        )

    def _lacked_ms(
        self, known: ProviderDuration, billing: Billing, micros: int, minutes: int
    ) -> int:
        """The uncollected time, by the counter that lacked more."""
        terms = self.process.rates.kinds.get(billing.kind)
        lacked_ms = max(0, minutes) * MINUTE_MS
        if terms is not None and terms.price_micros:
            lacked_ms = max(lacked_ms, max(0, micros) * MINUTE_MS // terms.price_micros)
        figure_ms = known.facts_ms if known.provider_ms is None else known.provider_ms
        return min(lacked_ms, max(0, figure_ms - known.elapsed_ms))

    async def _make_minutes(
        self, known: ProviderDuration, billing: Billing, correction: Correction
    ) -> int:
        """Adds or gives back minutes in the open month; returns how many."""
        minutes, ledger = correction.minutes, self.process.ledger
        if not minutes:
            return 0
        made = await self.process.records.adjustment(
            known.tenant, known.user_id, correction.entry_id
        )
        if made is None and minutes > 0:
            minutes = min(minutes, await self._room(known, billing, correction.month))
        while minutes:
            try:
                adjusted = await ledger.adjust_minutes(
                    known.tenant,
                    known.user_id,
                    entry_id=correction.entry_id,
                    minutes=minutes,
                    reason=correction.reason,
                    month=correction.month,
                )
                return adjusted.minutes
            except BadMessageError:
                used = await self._used(known, correction.month)
                if used >= -minutes:
                    # The session's own minutes are counted, and still on their way to the record.
                    raise ServiceError("the record of minutes is behind") from None
                minutes = -used  # the open month has fewer: none goes below zero
        return 0

    async def _used(self, known: ProviderDuration, month: str) -> int:
        figures = await self._month(known, None, month)
        return max(0, figures[0])

    async def _room(self, known: ProviderDuration, billing: Billing, month: str) -> int:
        """The minutes that the limits of the month have left."""
        _, room = await self._month(known, billing, month)
        return max(0, room)

    async def _month(
        self, known: ProviderDuration, billing: Billing | None, month: str
    ) -> tuple[int, int]:
        """What a month has used, and what its limits have left."""
        process = self.process
        identity = Identity(
            tenant=known.tenant,
            session_id=known.session_id,
            user_id=known.user_id,
            org_id=billing.org_id if billing is not None else None,
            account_id=known.account_id,
            counterpart_id=None,
            kind="",
            started_at=known.started_at,
            terms=_COUNTING,
        )
        if await process.live.usage(known.tenant, known.user_id, month) is None:
            await process.loader.load(identity, ["member", "org"])
        found = await process.live.month(known.tenant, known.user_id, month)
        left = [
            one.limit_minutes - one.used_minutes - one.held_minutes
            for one in found
            if one.limit_minutes is not None
        ]
        return found[0].used_minutes, min(left, default=2**31)

    async def _make_credits(
        self, known: ProviderDuration, correction: Correction, micros: int
    ) -> int:
        """Charges or gives back credits; returns how many were charged."""
        ledger = self.process.ledger
        account = AccountName(known.tenant, known.account_id)
        data = {"session_id": known.session_id}
        if micros < 0:
            entry = EntryPosted(
                tenant=known.tenant,
                account_id=known.account_id,
                entry_id=correction.entry_id,
                entry_kind="adjust",
                amount_micros=-micros,
                at=correction.at,
                reason=correction.reason,
                metadata=data,
            )
            try:
                await ledger.enter(entry)
            except BalanceTooHighError:
                return 0
            return micros
        while micros > 0:
            spent = await ledger.spend(
                account,
                entry_id=correction.entry_id,
                micros=micros,
                entry_kind="adjust",
                reason=correction.reason,
                metadata=data,
            )
            if isinstance(spent, Spent):
                return spent.amount_micros
            available = (await ledger.balance(account, None)).available_micros
            micros = min(micros - 1, available)
        return 0


_COUNTING = Terms(
    kind="",
    price_micros=0,
    free_ms=0,
    free_scope="session",
    first_increment_ms=MINUTE_MS,
    next_increment_ms=MINUTE_MS,
    counts_minutes=True,
    warn_at_ms=(),
    stop_grace_ms=0,
    reconnect_grace_ms=0,
    gap="skip",
    session_cap_ms=0,
    tick_ms=MINUTE_MS,
)
"""Terms of a session that counts minutes, for loading the month's counters."""


def _open(known: ProviderDuration, due: Due) -> tuple[int, int]:
    """What is still to be charged and counted."""
    micros = due.micros - sum(one.credits_micros for one in known.corrections)
    minutes = due.minutes - sum(one.minutes for one in known.corrections)
    if micros > 0:
        micros = max(0, micros - known.uncollected_micros)
    if minutes:
        minutes -= known.uncollected_minutes
    return micros, minutes


def _target_ms(
    figure_ms: int, elapsed_ms: int, terms: Terms, ended: SessionEnded
) -> tuple[int, str]:
    """The time that a session is charged for, and why."""
    difference_ms = figure_ms - elapsed_ms
    if not difference_ms:
        return elapsed_ms, ""
    if abs(difference_ms) <= terms.tolerance_ms:
        return elapsed_ms, "tolerance"
    if difference_ms > 0 and ended.reason in KEPT_ENDS:
        return elapsed_ms, ended.reason
    cap_ms = terms.session_cap_ms
    if 0 < cap_ms < figure_ms:
        return max(cap_ms, elapsed_ms) if difference_ms > 0 else cap_ms, "cap"
    return figure_ms, "longer" if difference_ms > 0 else "shorter"


def _free_ms(terms: Terms, ended: SessionEnded) -> int:
    """The free time of the session.

    A shared allowance may have had more for time that our clock missed. The record does not say how
    much, so that time is free as long as all of the session was.
    """
    is_shared = terms.free_scope != "session"
    if is_shared and ended.elapsed_ms > ended.free_ms:
        return ended.free_ms
    return max(ended.free_ms, terms.free_ms)
