"""A fuzz run of a fixed size.

`scripts/fuzz --count N --seed S` makes longer ones.
"""

from decimal import Decimal

from tests.fuzz.cases import FrameCase, MessageCase, RequestCase, case_of
from tests.fuzz.honest import Honest, charge
from tests.fuzz.run import fuzz

CASES = 1_500


async def test_an_attack_leaves_no_crash_leak_or_wrong_bill() -> None:
    report = await fuzz(seed=20261125, count=CASES)
    assert report.problems == [], "\n".join(report.lines())
    # The attack was real: some cases of each sort passed, and some were refused.
    for answer in ("welcome", "session", "pong", "bad_message", "forbidden", "unknown_session"):
        assert report.answers[answer], report.answers
    for status in ("101", "200", "400", "401", "403", "404", "405"):
        assert report.answers[status], report.answers
    assert report.ticks


def test_seed_and_number_determine_a_case() -> None:
    cases = [case_of(7, number) for number in range(300)]
    assert cases == [case_of(7, number) for number in range(300)]
    assert cases != [case_of(8, number) for number in range(300)]
    assert {type(case) for case in cases} == {MessageCase, FrameCase, RequestCase}


def judged(kind: str, receipt: dict[str, object], left: str) -> list[str]:
    """The problems of a session that ran for 3.0 to 3.2 seconds."""
    honest = Honest(1, kind, paused=False, client=None)  # type: ignore[arg-type]
    honest.began, honest.ended = (100.0, 100.1), (103.1, 103.2)
    honest.judge({"gaps": [], "reason": "client", **receipt}, charge("chat", 0) + Decimal(left))
    return honest.problems


def test_a_slightly_wrong_bill_is_found() -> None:
    # Sixty-one seconds at twenty times the speed, thirty of them free.
    good = {"elapsed_ms": 61_000, "credits": "0.516666"}
    assert judged("chat", good, "9999.483334") == []
    for changes, left in (
        ({"credits": "0.516667"}, "9999.483333"),
        ({}, "9999.483333"),
        ({"elapsed_ms": 65_000, "credits": "0.583333"}, "9999.416667"),
        ({"elapsed_ms": 59_000, "credits": "0.483333"}, "9999.516667"),
        ({"gaps": [{}]}, "9999.483334"),
        ({"reason": "operator"}, "9999.483334"),
    ):
        assert len(judged("chat", {**good, **changes}, left)) == 1, changes
