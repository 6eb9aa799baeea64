"""A process projects balances and their ends between two messages."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.metering.projection import AccountProjection, BurnLine, MonthProjection, burn_line_of
from protocol.metering.terms import MINUTE_MS, Terms
from tests.protocol.examples import CREDIT, NOW, terms_of

any_terms = st.builds(
    terms_of,
    price_micros=st.sampled_from([0, 777_777, 1_000_000, 3_000_000]),
    first_increment_ms=st.sampled_from([1_000, 30_000, 60_000]),
    next_increment_ms=st.sampled_from([1_000, 6_000, 60_000]),
    speed=st.sampled_from([1, 1, 10]),
)
any_line = st.builds(
    lambda terms, elapsed_ms, behind_ms, free_ms, running: burn_line_of(
        terms, elapsed_ms, NOW - behind_ms, free_ms, running=running
    ),
    any_terms,
    st.integers(0, 300_000),
    st.integers(0, 60_000),
    st.sampled_from([0, 60_000, 120_000]),
    st.booleans(),
)


def account_with(gross_micros: int, lines: list[BurnLine], reserved: int = 0) -> AccountProjection:
    account = AccountProjection("user:ann", "ann")
    named = {f"chat-{number}": line for number, line in enumerate(lines)}
    account.replace(1, gross_micros, reserved, named)
    return account


@given(
    terms=any_terms,
    elapsed_ms=st.integers(0, 300_000),
    free_ms=st.integers(0, 90_000),
    later_ms=st.integers(0, 90_000),
)
def test_a_line_costs_what_the_terms_say(
    terms: Terms, elapsed_ms: int, free_ms: int, later_ms: int
) -> None:
    running = burn_line_of(terms, elapsed_ms, NOW, free_ms, running=True)
    position_ms = elapsed_ms + later_ms * terms.speed
    assert running.elapsed_at(NOW + later_ms) == position_ms
    assert running.cost_at(NOW + later_ms) == terms.cost_micros(position_ms, free_ms)
    stopped = burn_line_of(terms, elapsed_ms, NOW, free_ms, running=False)
    assert stopped.cost_at(NOW + later_ms) == terms.cost_micros(elapsed_ms, free_ms)
    assert stopped.burn_micros == 0


@given(
    terms=any_terms,
    micros=st.integers(0, 10 * CREDIT),
    claims=st.lists(st.integers(1, 90_000), max_size=6),
    later_ms=st.integers(0, 90_000),
)
def test_claims_do_not_change_what_is_shown(
    terms: Terms, micros: int, claims: list[int], later_ms: int
) -> None:
    """Claims do not change the balance that clients see.

    Claims move money from the balance to the charged amount; the gross is the sum of both.
    """
    balance, charged, elapsed_ms, at = micros, 0, 0, NOW
    line = burn_line_of(terms, 0, NOW, 0, running=True)
    shown = []
    for wait_ms in [0, *claims]:
        at += wait_ms
        elapsed_ms += wait_ms * terms.speed
        charge = terms.cost_micros(elapsed_ms, 0) - charged
        balance, charged = balance - charge, charged + charge
        shown.append(account_with(balance + charged, [line]).credits_micros(at + later_ms))
        # With the claim's own anchor it is the same line.
        anew = burn_line_of(terms, elapsed_ms, at, 0, running=True)
        assert account_with(balance + charged, [anew]).credits_micros(at + later_ms) == shown[-1]
    assert shown[-1] == micros - terms.cost_micros(elapsed_ms + later_ms * terms.speed, 0)


@given(
    lines=st.lists(any_line, max_size=limits.BURN_LINES_EXACT_MAX), later_ms=st.integers(0, 60_000)
)
def test_the_balance_is_the_gross_less_what_all_sessions_cost(
    lines: list[BurnLine], later_ms: int
) -> None:
    account = account_with(50 * CREDIT, lines)
    cost = sum(line.cost_at(NOW + later_ms) for line in lines)
    assert account.cost_micros(NOW + later_ms) == cost
    assert account.credits_micros(NOW + later_ms) == 50 * CREDIT - cost


@given(lines=st.lists(any_line, min_size=1, max_size=5))
def test_what_one_session_could_have_is_what_the_others_leave(lines: list[BurnLine]) -> None:
    account = account_with(50 * CREDIT, lines, reserved=CREDIT)
    others = sum(line.cost_at(NOW) for line in lines[1:])
    assert account.available_to("chat-0", NOW) == 49 * CREDIT - others
    assert account.available_to("unknown", NOW) == 49 * CREDIT - others - lines[0].cost_at(NOW)
    assert account.burns_alone("chat-0") == (not any(line.burn_micros for line in lines[1:]))


@given(lines=st.lists(any_line, min_size=1, max_size=8))
def test_what_others_need_is_what_they_cost_until_they_claim(lines: list[BurnLine]) -> None:
    account = account_with(5 * CREDIT, lines)
    later = NOW + limits.GRANT_SHRUNKEN_MS[-1] + limits.RECALL_WAIT_MS
    needed = account.needed_beside("chat-0", NOW)
    assert needed == sum(line.cost_at(later) - line.cost_at(NOW) for line in lines[1:])
    many = account_with(5 * CREDIT, [line for line in lines if line.cost_at(NOW)] * 9)
    if len(many.lines) > limits.BURN_LINES_EXACT_MAX:
        needed = many.needed_beside("", NOW)
        assert needed >= many.cost_micros(later) - many.cost_micros(NOW)


def test_with_many_sessions_one_sum_serves_a_tenth_of_a_second() -> None:
    line = burn_line_of(terms_of(), 0, NOW, 0, running=True)
    account = account_with(50 * CREDIT, [line] * (limits.BURN_LINES_EXACT_MAX + 1))
    first = account.cost_micros(NOW + 500)
    assert account.cost_micros(NOW + 500 + limits.BURN_SUM_KEPT_MS - 1) == first
    later = NOW + 1_001
    assert account.cost_micros(later) == (limits.BURN_LINES_EXACT_MAX + 1) * line.cost_at(later)
    assert account.apply(2, 50 * CREDIT, 0, "chat-0", None)
    assert account.cost_micros(later) == limits.BURN_LINES_EXACT_MAX * line.cost_at(later)


@given(
    lines=st.lists(any_line, min_size=1, max_size=limits.BURN_LINES_EXACT_MAX),
    micros=st.integers(-CREDIT, 20 * CREDIT),
    reserved=st.sampled_from([0, CREDIT]),
)
def test_the_balance_covers_every_increment_until_it_is_empty(
    lines: list[BurnLine], micros: int, reserved: int
) -> None:
    account = account_with(micros, lines, reserved)
    burning = [line for line in lines if line.burn_micros]
    dry_at = account.dry_at()
    if not burning:
        assert dry_at is None
        return
    since = max(line.at for line in burning)
    assert dry_at is not None
    assert dry_at >= since
    assert account.credits_micros(dry_at + 1) < reserved
    assert account.credits_micros(dry_at) >= reserved or dry_at == since


@pytest.mark.parametrize("micros", [CREDIT, 10 * CREDIT, 100 * CREDIT])
def test_with_many_sessions_the_end_is_exact_within_an_increment(micros: int) -> None:
    terms = terms_of(price_micros=1_000_000, first_increment_ms=60_000, next_increment_ms=60_000)
    lines = [
        burn_line_of(terms, 0, NOW - 7_000 * number, 0, running=True)
        for number in range(limits.BURN_LINES_EXACT_MAX + 2)
    ]
    cost = sum(line.cost_at(NOW) for line in lines)
    dry_at = account_with(cost + micros, lines).dry_at()
    first = next(
        at for at in range(NOW, NOW + 20 * MINUTE_MS, 100)
        if sum(line.cost_at(at) for line in lines) > cost + micros
    )  # fmt: skip
    assert dry_at is not None
    assert abs(dry_at - first) <= 60_000


def test_what_does_not_burn_is_never_dry() -> None:
    paused = burn_line_of(terms_of(), 5_000, NOW, 0, running=False)
    costs_nothing = burn_line_of(terms_of(price_micros=0), 5_000, NOW, 0, running=True)
    assert account_with(CREDIT, [paused, costs_nothing]).dry_at() is None
    assert account_with(0, []).dry_at() is None


def test_a_debt_is_dry_at_once() -> None:
    line = burn_line_of(terms_of(), 0, NOW, 0, running=True)
    assert account_with(-CREDIT, [line]).dry_at() == NOW


def test_changes_are_taken_in_order_and_once() -> None:
    line = burn_line_of(terms_of(), 0, NOW, 0, running=True)
    account = account_with(CREDIT, [])
    assert account.apply(2, 2 * CREDIT, 0, "chat-1", line)
    assert account.lines == {"chat-1": line}
    # The same message again, or an older one, changes nothing.
    assert account.apply(2, 9 * CREDIT, 0, "chat-1", None)
    assert (account.gross_micros, account.lines) == (2 * CREDIT, {"chat-1": line})
    # A message was missed: the account is to be read anew.
    assert not account.apply(4, 9 * CREDIT, 0, None, None)
    assert (account.version, account.gross_micros) == (2, 2 * CREDIT)
    assert account.apply(3, 3 * CREDIT, CREDIT, None, None)
    assert (account.lines, account.reserved_micros) == ({"chat-1": line}, CREDIT)
    assert account.apply(4, 3 * CREDIT, 0, "chat-1", None)
    assert account.lines == {}


def test_a_change_moves_the_instant_at_which_it_is_dry() -> None:
    line = burn_line_of(terms_of(), 0, NOW, 0, running=True)
    account = account_with(CREDIT, [line])
    before = account.dry_at()
    assert account.apply(2, 2 * CREDIT, 0, None, None)
    after = account.dry_at()
    assert before is not None
    assert after is not None
    assert after - before == MINUTE_MS


@pytest.mark.parametrize(
    ("month", "unsettled", "left"),
    [
        (MonthProjection(), 5, None),
        (MonthProjection(limit_minutes=10, used_minutes=4), 1, 5),
        (MonthProjection(limit_minutes=10, used_minutes=4, active=2), 1, 2),
        (MonthProjection(limit_minutes=10, used_minutes=9, active=3), 0, 0),
        (MonthProjection(limit_minutes=10, used_minutes=12), 0, 0),
    ],
)
def test_minutes_left_are_shared_equally(
    month: MonthProjection, unsettled: int, left: int | None
) -> None:
    assert month.minutes_left(unsettled) == left


def test_a_line_is_a_plain_value() -> None:
    line = burn_line_of(terms_of(), 1, NOW, 2, running=True)
    assert BurnLine(*msgspec.structs.astuple(line)) == line


@given(st.data())
def test_sums_that_are_kept_are_those_of_the_lines(data: st.DataObject) -> None:
    """An account's kept sums equal those computed from its lines.

    In whatever order lines come and go, an account that got them one by one has the same sums as an
    account that was just read.
    """
    told = AccountProjection("t", "a")
    told.replace(0, 0, 0, {})
    current: dict[str, BurnLine] = {}
    for version in range(1, data.draw(st.integers(1, 40))):
        session_id = f"s{data.draw(st.integers(0, 14))}"
        gone = data.draw(st.integers(0, 3)) == 0
        line = None if gone else data.draw(any_line)
        if line is None:
            current.pop(session_id, None)
        else:
            current[session_id] = line
        gross = data.draw(st.integers(-(10**6), 10**9))
        assert told.apply(version, gross, 0, session_id, line)
        now_ms = NOW + data.draw(st.integers(0, 10**6))
        told.credits_micros(now_ms)
        read = AccountProjection("t", "a")
        read.replace(version, gross, 0, dict(current))
        assert told.dry_at() == read.dry_at()
        assert told._sum_at < 0 or told._sum_micros == sum(
            one.cost_at(told._sum_at) for one in current.values()
        )
        for name in ("s0", "other"):
            others = [one for key, one in current.items() if key != name and one.burn_micros]
            assert told.burns_alone(name) == (not others)


def test_the_cost_of_a_change_does_not_grow_with_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A change costs the same however many lines an account has.

    The test counts work: how often the cost of any line is computed.
    """
    asked = 0
    cost_at = BurnLine.cost_at

    def counted(line: BurnLine, now_ms: int) -> int:
        nonlocal asked
        asked += 1
        return cost_at(line, now_ms)

    monkeypatch.setattr(BurnLine, "cost_at", counted)
    account = AccountProjection("t", "a")
    terms = terms_of(price_micros=CREDIT)
    found = {f"s{n}": burn_line_of(terms, 0, NOW, 0, running=True) for n in range(1_000)}
    account.replace(1, 10**12, 0, found)
    account.credits_micros(NOW)
    asked = 0
    for version in range(2, 502):
        halted = burn_line_of(terms, 1_000, NOW + 1_000, 0, running=False)
        account.apply(version, 10**12, 0, f"s{version}", halted)
        account.credits_micros(NOW + 50)
        account.available_to(f"s{version}", NOW + 50)
        assert account.dry_at() is not None
        assert not account.burns_alone("s0")
    assert asked <= 500 * 4
