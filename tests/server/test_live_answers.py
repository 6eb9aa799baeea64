"""Rows have the figures of the instant that they name."""

from server.ops.live_answers import live_session_row
from tests.server.live_row_examples import MINUTE_MS, live_row


def test_figures_are_those_of_the_instant() -> None:
    row = live_row(limit="credits", remaining_ms=10 * MINUTE_MS, nodes=("a", "b"))
    found = live_session_row(row, MINUTE_MS)
    assert (found.as_of_at, found.elapsed_ms, found.remaining_ms) == (
        MINUTE_MS,
        MINUTE_MS,
        9 * MINUTE_MS,
    )
    assert (found.credits, found.credits_per_minute) == ("9", "1")
    assert (found.nodes, found.pace) == (["a", "b"], 1)
