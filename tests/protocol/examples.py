"""Example sessions for the tests of the rules: terms, standings, grants."""

from typing import Any

import msgspec

from protocol.metering.projection import AccountProjection, BurnLine, burn_line_of
from protocol.metering.quota import MonthOf
from protocol.metering.session import Grant, Identity, SessionState, Standing, unstarted
from protocol.metering.states import Phase
from protocol.metering.terms import Terms

CREDIT = 1_000_000
NOW = 1_780_000_000_000

TERMS = Terms(
    kind="chat",
    price_micros=CREDIT,
    free_ms=0,
    free_scope="session",
    first_increment_ms=1_000,
    next_increment_ms=1_000,
    counts_minutes=False,
    warn_at_ms=(),
    stop_grace_ms=15_000,
    reconnect_grace_ms=30_000,
    gap="skip",
    session_cap_ms=0,
    tick_ms=1_000,
)


def terms_of(**changes: Any) -> Terms:
    """The usual terms, with changes."""
    return msgspec.structs.replace(TERMS, **changes)


def identity_of(terms: Terms = TERMS, **changes: Any) -> Identity:
    """The owner of the usual session."""
    identity = Identity(
        tenant="user:ann",
        session_id="chat-1",
        user_id="ann",
        org_id=None,
        account_id="ann",
        counterpart_id=None,
        kind=terms.kind,
        started_at=NOW,
        terms=terms,
    )
    return msgspec.structs.replace(identity, **changes)


def standing_of(phase: Phase = Phase.ACTIVE, **changes: Any) -> Standing:
    """A session that has just started."""
    standing = msgspec.structs.replace(unstarted(phase, NOW, 0), version=1)
    return msgspec.structs.replace(standing, **changes)


def session_of(
    terms: Terms = TERMS,
    standing: Standing | None = None,
    grant: Grant | None = None,
    **identity: Any,
) -> SessionState:
    """A new session with a grant of a minute and a margin."""
    return SessionState(
        identity_of(terms, **identity),
        standing_of(free_ms=terms.free_ms) if standing is None else standing,
        Grant(granted_ms=65_000, held_micros=terms.cost_micros(65_000, terms.free_ms))
        if grant is None
        else grant,
    )


def month_of(_: int) -> str:
    """A month that does not end."""
    return "2026-05-01"


def months_that_change_at(at_ms: int) -> MonthOf:
    """The calendar around the end of a month."""
    return lambda instant: "2026-05-01" if instant < at_ms else "2026-06-01"


def account_of(micros: int) -> AccountProjection:
    """An account with this balance, on which no session runs."""
    account = AccountProjection("user:ann", "ann")
    account.replace(1, micros, 0, {})
    return account


def line(terms: Terms, **changes: Any) -> BurnLine:
    """A session that runs since now."""
    made = burn_line_of(terms, 0, NOW, terms.free_ms, running=True)
    return msgspec.structs.replace(made, **changes)
