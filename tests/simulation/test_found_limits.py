"""Found in simulated worlds (see ``traces``): limits, holds and uncovered time."""

from unittest import mock

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.mixes import world_of
from tests.simulation.redis_links import VirtualPubSub
from tests.simulation.traces import NODE, act, pay, run, spend, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_grants_of_others_do_not_prevent_start(lab: Laboratory) -> None:
    """Other sessions give back what a start needs (seed 97).

    Grants reach a minute ahead; a start needs less.
    """
    clients = run(
        lab,
        pay("cat9", 2_900_000),
        start("s1", kind="minute"),
        start("s2", kind="minute"),
        wait(1),
    )
    told = [message["type"] for client in clients for message in client.messages]
    assert "error" not in told


def test_sessions_of_owing_account_are_recalled_once(lab: Laboratory) -> None:
    """An owing account's sessions are recalled once (seed 285).

    An adjustment took what two sessions hold: each gives back what it can.
    """
    run(
        lab,
        pay("cat9", 800_000),
        start("s1"),
        start("s2"),
        pay("cat9", -700_000, entry="correction"),
        wait(60),
    )


def test_session_does_not_recall_reserved_credits(lab: Laboratory) -> None:
    """No session can give back what a hold reserves (seed 285)."""
    run(
        lab,
        pay("cat9", 800_000),
        act(
            "transfer", node=NODE, kind="hold", user="cat9", entry="hold:h1", micros=100_000,
            hold="h1", ttl_ms=1_800_000,
        ),
        start("s1"),
        pay("cat9", -700_000, entry="correction"),
        wait(60),
    )  # fmt: skip


def test_lowered_limit_does_not_stop_begun_minute(lab: Laboratory) -> None:
    """A begun minute counts and lasts in full (seeds 78, 311)."""
    clients = run(
        lab,
        start("s1", user="ann9", kind="recording"),
        wait(120),
        act("limit", user="ann9", minutes=2, of_org=True),
        wait(180),
    )
    (stopped,) = (one for one in clients[0].messages if one["type"] == "stopped")
    assert stopped["limit"] == "org_minutes"
    assert stopped["receipt"]["elapsed_ms"] == 180_000


def test_grants_of_others_do_not_prevent_billed_gap(lab: Laboratory) -> None:
    """Credits that another session holds pay a returning client's gap (seed 975)."""
    clients = run(
        lab,
        pay("cat9", 750_000),
        start("s1", kind="capped"),
        act("cut", client="c-s1"),
        wait(39),
        start("s2"),
        wait(1),
        act("join", client="c-again", node=NODE, session="s1", last_seq=None),
        wait(0.1),
        act("ask", client="c-again", session="s1", event="stop"),
        wait(1),
    )
    (stopped,) = (one for one in clients[-1].messages if one["type"] == "stopped")
    assert stopped["reason"] == "client"
    assert stopped["receipt"]["elapsed_ms"] == 40_100


def test_cap_stops_session_without_redis(lab: Laboratory) -> None:
    """Uncovered time continued beyond the cap, which no grant contains (seed 1384)."""
    clients = run(
        lab,
        pay("cat9", 9_000_000),
        start("s1", kind="capped"),
        wait(5),
        act("redis_away", ms=150_000),
        wait(180),
    )
    (stopped,) = (one for one in clients[0].messages if one["type"] == "stopped")
    assert (stopped["limit"], stopped["receipt"]["elapsed_ms"]) == ("session_cap", 100_000)


def test_stop_at_cap_is_sent_before_redis_has_it(lab: Laboratory) -> None:
    """While Redis was away, its data was counted on beyond the cap.

    The client had received the stop on time (seed 20019).
    """
    clients = run(
        lab,
        pay("cat9", 9_000_000),
        start("s1", kind="capped"),
        wait(5),
        act("redis_away", ms=150_000),
        wait(110),
        wait(70),
    )
    told = {one["type"]: one for one in clients[0].messages}
    stopped_ms = told["limit_reached"]["stopped_at"] - told["session"]["started_at"]
    assert stopped_ms == told["stopped"]["receipt"]["elapsed_ms"] == 100_000


def test_session_of_dead_process_stops_at_cap(lab: Laboratory) -> None:
    """No process lived to end the session while Postgres was away.

    The session in Redis was counted on beyond the cap (found by looking at 20019).
    """
    clients = run(
        lab,
        pay("cat9", 9_000_000),
        start("s1", kind="capped"),
        wait(5),
        act("postgres_away", ms=150_000),
        wait(10),
        act("kill", name=NODE),
        act("join", client="c-late", node="node.x1", session="s1", last_seq=None),
        wait(60),
    )
    (stopped,) = (one for one in clients[-1].messages if one["type"] == "stopped")
    assert (stopped["limit"], stopped["receipt"]["elapsed_ms"]) == ("session_cap", 100_000)


def test_session_without_redis_stops_with_its_credits(lab: Laboratory) -> None:
    """The process knew of three seconds, and ran on for 9.6.

    The client was charged what it did not have (seed 5338 found the debt, and nothing that
    explained it).
    """
    clients = run(
        lab,
        pay("cat9", 50_000),
        start("s1"),
        act("redis_away", ms=8_000),
        wait(61),
    )
    told = {one["type"]: one for one in clients[0].messages}
    assert (told["limit_reached"]["limit"], told["limit_reached"]["elapsed_ms"]) == (
        "credits",
        3_000,
    )
    assert told["stopped"]["receipt"]["elapsed_ms"] == 3_000
    assert told["stopped"]["receipt"]["credits"] == "0.05"


def test_late_proven_uncovered_time_is_recorded(lab: Laboratory) -> None:
    """The first answer of Redis came before the first proof of life.

    Its grant hid that there was none when the time was used (seed 5338).
    """
    run(
        lab,
        pay("cat9", 20_000_000),
        start("s1"),
        wait(55),
        act("redis_away", ms=15_000),
        wait(61),
    )


@pytest.mark.parametrize("ahead_ms", [1, 2, 100, 240])
def test_spend_just_before_minute_end_is_answered(lab: Laboratory, ahead_ms: int) -> None:
    """A recalled session claimed another minute before the spend's next attempt.

    The spend was refused as if a process had not answered (seed 44013).
    """
    run(
        lab,
        pay("bob9", 20_000_000),
        start("s1", user="bob9", kind="chat"),
        wait(60 - ahead_ms / 1_000),
        spend("bob9", 20_000_000),
    )


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_missed_recall_is_repeated_before_the_end(lab: Laboratory, lost: int) -> None:
    """The holder of the whole rest is disconnected as another session starts."""
    recalls: list[bytes] = []
    publish = VirtualPubSub.publish

    def lossy(listener: VirtualPubSub, channel: bytes, message: bytes) -> None:
        if b'"recall":true' in message:
            recalls.append(message)
            if len(recalls) <= lost:
                return
        publish(listener, channel, message)

    with mock.patch.object(VirtualPubSub, "publish", lossy):
        clients = run(
            lab, pay("cat9", 1_200_000), start("s1"), wait(1), start("s2", kind="pair"), wait(80)
        )
    (elapsed_ms,) = (
        one["elapsed_ms"] for one in clients[1].messages if one["type"] == "limit_reached"
    )
    # 45 seconds are free; then both sessions burn what the first one leaves.
    assert elapsed_ms == 58_000


@pytest.mark.parametrize("micros", [934_200, 1_783_332, 2_283_332, 2_500_000])
@pytest.mark.parametrize(
    "delays",
    [[20, 20, 20, 2_500], [20, 20, 900, 1_600], [700, 20, 2_500], [900, 1_600, 20, 20]],
)
def test_sessions_use_no_more_than_balance_during_late_answers(
    lab: Laboratory, micros: int, delays: list[int]
) -> None:
    """A late claim gave back a part of a grant used meanwhile.

    The claim of a session that had stopped was granted what another session used (seed 43007).
    """
    run(
        lab,
        pay("bob9", micros),
        start("s1", user="bob9"),
        wait(0.001),
        act("close", client="c-s1"),
        start("s2", user="bob9"),
        start("s3", user="bob9", kind="second"),
        start("s4", user="bob9"),
        wait(4),
        act("slow_redis", delays=delays, ms=90_000),
        wait(61),
        wait(61),
    )


SIX = [start(f"s{number}", user="bob9", kind="six") for number in (1, 2)]


def test_used_credits_of_stopped_session_are_not_granted(lab: Laboratory) -> None:
    """The account's end stopped a session beyond its grant, unknown to Redis.

    Another running session was granted the same credits once more.
    """
    run(
        lab,
        pay("bob9", 2_041_329),
        *SIX,
        start("s3", user="bob9"),
        wait(20),
        act("slow_redis", delays=[900, 1_600, 2_500], ms=90_000),
        wait(61),
        wait(61),
    )


@pytest.mark.parametrize("kind", ["day", "second"])
@pytest.mark.parametrize("event", ["pause", "cut"])
def test_resumed_session_gets_no_used_credits(lab: Laboratory, kind: str, event: str) -> None:
    """Another session used credits and stopped, which Redis did not know yet.

    Redis granted these credits to a session that was resumed.
    """
    stop = act("ask", client="c-s2", session="s2", event="pause")
    again = act("ask", client="c-s2", session="s2", event="resume")
    if event == "cut":
        stop = act("close", client="c-s2")
        again = act("join", client="c-again", node=NODE, session="s2", last_seq=0)
    run(
        lab,
        pay("bob9", 1_295_574 if kind == "day" else 1_490_000),
        start("s1", user="bob9"),
        wait(0.001),
        start("s2", user="bob9", kind=kind),
        wait(24),
        act("slow_redis", delays=[5_000], ms=90_000),
        wait(11),
        stop,
        wait(4),
        again,
        wait(61),
        wait(61),
    )


def test_start_gets_no_credits_that_uncovered_sessions_used(lab: Laboratory) -> None:
    """A waiting start was granted what other sessions used meanwhile."""
    run(
        lab,
        pay("bob9", 1_235_834),
        start("s1", user="bob9"),
        start("s2", user="bob9", kind="minute"),
        wait(0.9),
        start("s3", user="bob9"),
        wait(4),
        act("slow_redis", delays=[1_400, 5_000, 20], ms=90_000),
        wait(0.5),
        start("s4", user="bob9"),
        wait(3),
        act("ask", client="c-s2", session="s2", event="pause"),
        wait(1),
        act("ask", client="c-s2", session="s2", event="resume"),
        wait(0.5),
        act("close", client="c-s1"),
        wait(61),
        wait(61),
    )


def test_recall_is_answered_while_request_waits(lab: Laboratory) -> None:
    """A recall waited together with a pause for the earlier socket's answer.

    A hold was refused as if a process had not answered (seed 61155).
    """
    run(
        lab,
        pay("cat9", 3_000_000),
        start("s1", kind="minute"),
        act("cut", client="c-s1"),
        wait(5),
        act("join", client="c-again", node=NODE, session="s1", last_seq=0),
        act("ask", client="c-again", session="s1", event="pause"),
        spend("cat9", 3_000_000),
    )


def test_credits_freed_at_stop_come_after_it(lab: Laboratory) -> None:
    """Redis records both in one message.

    The client that held the rest is found to be gone as the other session's grant ends (seed
    61315).
    """
    run(
        lab,
        start("s1", user="bob9", kind="pair"),
        pay("bob9", 16_666),
        start("s2", user="ann9", kind="chat"),
        wait(12.345),
        wait(29.999),
        act("mute", client="c-s1"),
        wait(60),
    )


def test_refused_resume_charges_used_time(lab: Laboratory) -> None:
    """A refused resume charges what the session has used (seed 61411)."""
    bob = "bob61411"
    outcome = lab.run(
        61411,
        0,
        actions=[
            pay(bob, 1_583_333, "p11"),
            start("s13", bob, "minute", "c12"),
            act("redis_away", ms=150_000),
            act(
                "transfer", node=NODE, kind="hold", user=bob, entry="hold:h16", micros=142_857,
                hold="h16", ttl_ms=60_000,
            ),
            wait(600),
            start("s27", bob, "lesson", "c26"),
            start("s29", bob, "lesson", "c28"),
            act("slow_redis", delays=[1_400], ms=20_000),
            start("s31", bob, "lesson", "c30"),
            act(
                "transfer", node=NODE, kind="post", user=bob, entry="p32", micros=142_857,
                hold="h16",
            ),
            wait(12.345),
            act("ask", client="c30", session="s31", event="resume"),
        ],
        mix=world_of(61411, 0)[1],
    )  # fmt: skip
    assert outcome.failure is None


def test_cap_is_recorded_once_redis_answers(lab: Laboratory) -> None:
    """A session stops at its cap while all Redis's answers are late.

    Its clients receive the stop at once, and its record follows (seed 70137).
    """
    clients = run(
        lab,
        pay("cat9", 1_000_000),
        start("s1", kind="chat"),
        start("s2", kind="capped"),
        wait(29.999),
        pay("cat9", 500_000, "more"),
        wait(42.344),
        act("slow_redis", delays=[5_000], ms=90_000),
        wait(29.999),
        wait(90),
        wait(60),
    )
    (receipt,) = [
        message["receipt"]
        for client in clients
        for message in client.messages
        if message["type"] == "stopped" and message["session_id"] == "s2"
    ]
    assert receipt["elapsed_ms"] <= 100_000


def test_dropped_time_is_not_taken_for_time_beyond_a_shrunken_grant(lab: Laboratory) -> None:
    """A doubt ends just after a recall, while a start waits.

    The start waits for its credits (seed 90081). The step that drops the unproven time offers a
    grant beyond the present, in its own positions.
    """
    bob = "bob90081"
    outcome = lab.run(
        90081,
        0,
        actions=[
            start("s99", bob, "six", "c99"),
            pay(bob, 1_000_000, "p116"),
            start("s121", bob, "second", "c120"),
            pay(bob, -830_854, "p122"),
            pay(bob, 1_000_000, "p123"),
            act("cut", client="c120"),
            wait(3),
            act("join", client="c127", node=NODE, session="s121", last_seq=0),
            spend(bob, 250_000, "s129"),
            act("join", client="c130", node=NODE, session="s99", last_seq=None),
            wait(0.999),
            act(
                "start", client="c133", node=NODE, user=bob, kind="six", session="s134",
                backend=NODE, turns=-16,
            ),
            wait(0.001),
        ],
        mix=world_of(90081, 0)[1],
    )  # fmt: skip
    assert outcome.failure is None
