"""How far an account covers all its sessions together."""

from protocol import limits
from protocol.metering.cover import covered_until
from protocol.metering.effects import Reply
from protocol.metering.meter import Meter
from protocol.metering.session import Grant, SessionState
from protocol.metering.states import Event, Phase
from tests.protocol.examples import (
    CREDIT,
    NOW,
    account_of,
    identity_of,
    line,
    month_of,
    standing_of,
    terms_of,
)


def test_an_account_covers_two_sessions_until_the_same_instant() -> None:
    account = account_of(CREDIT)
    account.replace(1, CREDIT, 0, {"one": line(terms_of()), "two": line(terms_of())})
    assert covered_until(account) == NOW + 30_000
    account.apply(2, CREDIT, CREDIT // 2, "one", line(terms_of(), running=False))
    assert covered_until(account) == NOW + 30_000


def test_an_account_covers_the_grant_of_a_new_session() -> None:
    account = account_of(CREDIT)
    account.replace(1, CREDIT, 0, {"one": line(terms_of()), "two": line(terms_of())})
    beginning = Meter(
        SessionState(
            identity_of(session_id="three"), standing_of(Phase.PAUSED, free_ms=0), Grant()
        ),
        account,
        month_of,
    )
    beginning.attach(NOW)
    assert beginning.request(Event.RESUME, NOW, "resume")
    assert account.beginning == {"three": CREDIT // 60}
    assert covered_until(account) == NOW + 29_000
    beginning.granted(Reply(accepted=False, session=beginning.session, refused_by="credits"), NOW)
    assert account.beginning == {}
    assert covered_until(account) == NOW + 30_000


def test_time_that_became_known_late_is_covered_no_further_than_its_own_credits() -> None:
    # One session is known only up to NOW and has run on; the other is settled ten seconds later.
    late, settled = line(terms_of()), line(terms_of(), elapsed_ms=20_000, at=NOW + 10_000)
    account = account_of(CREDIT // 2)
    account.replace(1, CREDIT // 2, 0, {"late": late, "settled": settled})
    # 30 s are paid, and 20 s of them used: ten are left for the other, from NOW on.
    assert covered_until(account) == NOW + 10_000
    account.replace(2, 28 * CREDIT // 60, 0, {"late": late, "settled": settled})
    assert covered_until(account) == NOW + 8_000
    account.replace(3, 0, 0, {"late": late, "settled": settled})
    assert covered_until(account) == NOW


def test_many_sessions_that_an_account_does_not_cover_run_on_for_nothing() -> None:
    late = {f"late-{number}": line(terms_of()) for number in range(limits.BURN_LINES_EXACT_MAX)}
    settled = line(terms_of(), elapsed_ms=20_000, at=NOW + 10_000)
    account = account_of(CREDIT)
    account.replace(1, CREDIT, 0, {**late, "settled": settled})
    assert covered_until(account) == NOW
