"""Found in simulated worlds (see ``traces``): limits, holds and uncovered time."""

from unittest import mock

import pytest

from tests.simulation.driver import Laboratory
from tests.simulation.mixes import world_of
from tests.simulation.redis_links import VirtualPubSub
from tests.simulation.traces import NODE, act, pay, run, spend, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")


def test_what_others_hold_is_not_in_the_way_of_a_start(lab: Laboratory) -> None:
    """Grants reach a minute ahead; who starts needs less, and others give it back (seed 97)."""
    clients = run(
        lab,
        pay("cat9", 2_900_000),
        start("s1", kind="minute"),
        start("s2", kind="minute"),
        wait(1),
    )
    told = [message["type"] for client in clients for message in client.messages]
    assert "error" not in told


def test_sessions_of_an_account_that_owes_recall_each_other_once(lab: Laboratory) -> None:
    """An adjustment took what two sessions hold: each gives back what it can (seed 285)."""
    run(
        lab,
        pay("cat9", 800_000),
        start("s1"),
        start("s2"),
        pay("cat9", -700_000, entry="correction"),
        wait(60),
    )


def test_a_session_does_not_recall_what_is_reserved_for_an_operation(lab: Laboratory) -> None:
    """What a hold reserves no session can give back, least of all the one that asks (seed 285)."""
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


def test_a_lowered_limit_stops_no_session_in_the_middle_of_a_minute(lab: Laboratory) -> None:
    """A begun minute counts in full, and is used to its end (seeds 78 and 311)."""
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


def test_what_others_hold_is_not_in_the_way_of_a_gap_that_is_billed(lab: Laboratory) -> None:
    """Who comes back pays for the time between; another session holds ahead what is lacking for
    that (seed 975)."""
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


def test_a_cap_ends_a_session_though_redis_is_away(lab: Laboratory) -> None:
    """No grant says where it is, and uncovered time went on beyond it (seed 1384)."""
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


def test_a_stop_at_a_cap_is_said_before_redis_can_hear_of_it(lab: Laboratory) -> None:
    """What lay in Redis was counted on beyond the cap while it was away, though the client had
    been told of the stop on time (seed 20019)."""
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


def test_what_the_dead_have_left_runs_beyond_no_cap(lab: Laboratory) -> None:
    """Nobody lived to end it while Postgres was away, and what lay in Redis was counted on
    beyond the cap (found by looking at 20019)."""
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


def test_without_redis_a_session_stops_where_its_account_ends(lab: Laboratory) -> None:
    """The process knew that there were three seconds, and ran on for 9.6: the client was charged
    what it did not have (seed 5338 found the debt, and nothing that explained it)."""
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


def test_uncovered_time_that_is_proven_later_is_recorded_as_such(lab: Laboratory) -> None:
    """The first answer of Redis came before the first proof of life, and what it granted hid
    that nothing had been when the time was used (seed 5338)."""
    run(
        lab,
        pay("cat9", 20_000_000),
        start("s1"),
        wait(55),
        act("redis_away", ms=15_000),
        wait(61),
    )


@pytest.mark.parametrize("ahead_ms", [1, 2, 100, 240])
def test_a_spend_just_before_a_minutes_end_is_answered(lab: Laboratory, ahead_ms: int) -> None:
    """The session was recalled, and claimed another minute before the spend was tried again:
    whoever asked was refused as if a process had not answered (seed 44013)."""
    run(
        lab,
        pay("bob9", 20_000_000),
        start("s1", user="bob9", kind="chat"),
        wait(60 - ahead_ms / 1_000),
        spend("bob9", 20_000_000),
    )


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_recall_that_nobody_heard_is_made_again_before_the_end(
    lab: Laboratory, lost: int
) -> None:
    """Who burns alone holds the whole rest, and its line was broken when another one started."""
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
    # 45 seconds are free; then both burn what the first one leaves.
    assert elapsed_ms == 58_000


@pytest.mark.parametrize("micros", [934_200, 1_783_332, 2_283_332, 2_500_000])
@pytest.mark.parametrize(
    "delays",
    [[20, 20, 20, 2_500], [20, 20, 900, 1_600], [700, 20, 2_500], [900, 1_600, 20, 20]],
)
def test_sessions_of_one_account_use_no_more_than_it_has_while_answers_are_late(
    lab: Laboratory, micros: int, delays: list[int]
) -> None:
    """A claim on its way gave back a part of a grant that was used meanwhile; and one of a session
    that had stopped was granted what another used (seed 43007)."""
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


def test_what_a_session_used_before_its_stop_is_granted_to_no_other_meanwhile(
    lab: Laboratory,
) -> None:
    """It had stopped at the account's end beyond what it was granted, and Redis was yet to hear
    of that: another one, that still ran, was granted the same once more."""
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
def test_time_that_begins_anew_is_not_granted_what_others_have_used(
    lab: Laboratory, kind: str, event: str
) -> None:
    """Redis was yet to hear of what another session had used before it stopped, and granted it to
    one that was resumed."""
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


def test_who_runs_uncovered_counts_with_a_session_that_is_about_to_begin(
    lab: Laboratory,
) -> None:
    """Its start was on its way, and was granted what the others used meanwhile."""
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


def test_a_recall_is_answered_while_a_request_waits_for_a_proof(lab: Laboratory) -> None:
    """A pause waited to hear whether the socket that was there before was, and so did what had
    been recalled: a hold was refused as if a process had not answered (seed 61155)."""
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


def test_what_others_give_back_at_the_instant_of_a_stop_comes_after_it(lab: Laboratory) -> None:
    """Both are recorded in one message to Redis: the client that held the rest is found to be gone
    as the other one's grant ends (seed 61315)."""
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


def test_what_a_session_used_before_it_stopped_is_not_left_for_it(lab: Laboratory) -> None:
    """It asks to go on, and is refused: what it used is charged with that step (seed 61411)."""
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


def test_a_cap_is_recorded_once_redis_answers_in_time(lab: Laboratory) -> None:
    """A session stops at its cap while every answer of Redis is late: its clients hear of that
    at once, and its record follows (seed 70137)."""
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
