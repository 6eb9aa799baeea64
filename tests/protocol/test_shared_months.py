"""A process keeps the newest answer about a month.

Answers may come in any order.
"""

import msgspec

from protocol import limits
from protocol.metering.projection import MonthProjection
from protocol.metering.shared_months import SharedCounter

MONTH = MonthProjection("2026-05-01", 60, 50, 2, held_minutes=2, as_of_us=1_780_000_000_000_000)


def later(used: int, ms: int) -> MonthProjection:
    as_of_us = MONTH.as_of_us + ms * 1_000
    return msgspec.structs.replace(MONTH, used_minutes=used, as_of_us=as_of_us)


def test_an_answer_that_was_overtaken_tells_nothing() -> None:
    shared = SharedCounter()
    shared.tell(later(52, ms=2))
    offer_basis = shared.revision
    shared.tell(later(51, ms=1))
    assert (shared.newest.used_minutes, shared.revision) == (52, offer_basis)
    shared.tell(later(53, ms=3))
    assert (shared.newest.used_minutes, shared.revision) == (53, offer_basis + 1)


def test_the_same_figures_later_change_nothing_and_are_newer() -> None:
    shared = SharedCounter()
    shared.tell(MONTH)
    offer_basis = shared.revision
    shared.tell(later(50, ms=5))
    assert shared.revision == offer_basis
    shared.tell(later(49, ms=4))
    assert shared.newest.used_minutes == 50


def test_a_redis_whose_clock_is_behind_is_believed() -> None:
    shared = SharedCounter()
    shared.tell(MONTH)
    shared.tell(later(55, ms=-limits.REDIS_TIMEOUT_MS - 1))
    assert shared.newest.used_minutes == 55


def test_a_read_is_newer_than_all_earlier_answers() -> None:
    shared = SharedCounter()
    shared.tell(later(52, ms=2))
    shared.tell(msgspec.structs.replace(MONTH, used_minutes=54, as_of_us=0))
    shared.tell(later(51, ms=1))
    assert shared.newest.used_minutes == 54
