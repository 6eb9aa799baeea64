"""An account's hash, as figures."""

from protocol.metering.terms import MINUTE_MS
from storage.redis.encoding import encode_burn_line
from storage.redis.figures import figures_of
from tests.protocol.examples import CREDIT, line, terms_of


def test_an_account_without_fields_is_cold() -> None:
    assert figures_of({}) is None


def test_an_account_has_what_its_fields_say_and_zero_else() -> None:
    found = figures_of({b"balance": b"-5", b"position": b"3"})
    assert found is not None
    assert (found.balance_micros, found.gross_micros, found.version) == (-5, -5, 0)
    assert (found.available_micros, found.lines) == (-5, {})


def test_what_live_sessions_were_charged_is_part_of_the_gross() -> None:
    burning = line(terms_of())
    found = figures_of(
        {
            b"version": b"7", b"balance": b"6000000", b"charged_live": b"2000000",
            b"held": b"1500000", b"reserved": b"500000", b"burn": b"1000000",
            b"s:chat-1": encode_burn_line(burning).encode(), b"i:chat-2": b"9", b"h:hold": b"1",
        }
    )  # fmt: skip
    assert found is not None
    assert (found.version, found.gross_micros) == (7, 8 * CREDIT)
    assert (found.held_micros, found.reserved_micros, found.available_micros) == (
        1_500_000, 500_000, 4_500_000,
    )  # fmt: skip
    assert found.lines == {"chat-1": burning}
    assert found.burn_micros * MINUTE_MS == CREDIT * MINUTE_MS
