"""The answers of ``commit.lua``, and those that do not tell the outcome."""

from typing import Any

import pytest
from redis.exceptions import ResponseError

from protocol.metering.states import Event
from storage.redis.step_outcomes import AccountChange, StepOutcome, outcome_of
from tests.protocol.bench import Bench

COUNTERS = [[b"", b"0", b"0", b"0"], [b"", b"0", b"0", b"0"], [b"900", b"50", b"7"], b"", b"0"]


def a_step() -> Any:
    bench = Bench()
    bench.ask(Event.STOP)
    return bench.step


def answer(status: bytes, detail: bytes = b"", bumped: int = 0) -> list[Any]:
    return [status, detail, [], COUNTERS, bumped, []]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (b"gone", StepOutcome(reply=None, gone=True)),
        (b"full", StepOutcome(reply=None, full=True)),
        (b"outdated", StepOutcome(reply=None, outdated=True)),
        (b"crowded", StepOutcome(reply=None, crowded=True)),
    ],
)
def test_a_step_that_cannot_be_made_says_why(status: bytes, outcome: StepOutcome) -> None:
    assert outcome_of(a_step(), answer(status)) == outcome


def test_what_is_cold_is_named() -> None:
    assert outcome_of(a_step(), answer(b"cold", b"account,month")).cold == ("account", "month")


def test_a_made_step_names_its_entry_and_account() -> None:
    made = outcome_of(a_step(), answer(b"ok", b"5-0", bumped=1))
    assert made.reply is not None
    assert made.reply.accepted
    assert (made.entry_id, made.change) == ("5-0", AccountChange(7, 900, 50))
    assert outcome_of(a_step(), answer(b"ok", b"5-0")).change is None


@pytest.mark.parametrize(("status", "held"), [(b"refused", False), (b"held", True)])
def test_a_refusal_names_the_limit_and_whether_others_hold_it(status: bytes, held: bool) -> None:
    refused = outcome_of(a_step(), answer(status, b"credits"))
    assert refused.reply is not None
    assert (refused.reply.accepted, refused.reply.refused_by) == (False, "credits")
    assert (refused.held, refused.entry_id) == (held, "")


def test_an_error_of_one_script_fails_one_step() -> None:
    failed = outcome_of(a_step(), ResponseError("OOM command not allowed"))
    assert (failed.failed, failed.unread) == ("OOM command not allowed", False)


@pytest.mark.parametrize("garbage", [None, [], [b"ok"], answer(b"ok", None), answer(b"cold", 3)])  # type: ignore[arg-type]
def test_an_answer_that_cannot_be_read_raises_nothing(garbage: Any) -> None:
    unread = outcome_of(a_step(), garbage)
    assert unread.unread
    assert unread.failed
