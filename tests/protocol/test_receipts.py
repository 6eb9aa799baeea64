"""Receipts equal the record of the end, with another clock's measurement."""

import msgspec
import pytest

from protocol.metering.receipts import receipt
from protocol.metering.states import Phase
from protocol.metering.steps import ended_record
from tests.protocol.examples import CREDIT, NOW, identity_of, standing_of

ENDED = ended_record(
    identity_of(counterpart_id="bob"),
    standing_of(
        Phase.ENDED,
        elapsed_ms=90_000,
        charged_micros=3 * CREDIT // 2,
        minutes_kept=2,
        ended_at=NOW + 100_000,
        reason="client",
        segments=((NOW, NOW + 60_000), (NOW + 70_000, NOW + 100_000)),
        gaps=((NOW + 60_000, NOW + 70_000, False),),
    ),
)


def test_a_receipt_has_the_figures_of_the_record() -> None:
    made = receipt(ENDED)
    assert (made.elapsed_ms, made.billed_ms, made.minutes, made.credits) == (
        90_000, 90_000, 2, "1.5",
    )  # fmt: skip
    assert (made.user_id, made.counterpart_id, made.reason) == ("ann", "bob", "client")
    assert [(one.from_at, one.to_at) for one in made.segments] == ENDED.segments
    assert [(one.from_at, one.to_at, one.billed) for one in made.gaps] == ENDED.gaps
    encoded = msgspec.to_builtins(made)
    assert "provider_ms" not in encoded
    assert "difference_ms" not in encoded


@pytest.mark.parametrize(
    ("provider_ms", "difference_ms"), [(90_000, 0), (91_500, 1_500), (0, -90_000)]
)
def test_another_clock_is_compared_with_the_counted_time(
    provider_ms: int, difference_ms: int
) -> None:
    made = receipt(ENDED, provider_ms)
    assert (made.provider_ms, made.difference_ms) == (provider_ms, difference_ms)
