"""Limits that are reached while Redis answers late, or not at all.

No client is charged more than there is, and what was shown is never taken back.
"""

from typing import Any

import pytest

from tests.simulation import virtual
from tests.simulation.actions import Action
from tests.simulation.clients import SimulatedClient
from tests.simulation.driver import Laboratory
from tests.simulation.people import KINDS
from tests.simulation.redis_links import RedisLink, VirtualPubSub
from tests.simulation.traces import NODE, act, mishaps, pay, run, start, wait
from tests.simulation.virtual import VirtualLoop

pytestmark = pytest.mark.usefixtures("quiet_logs")

LATE = {
    "0.7 to 1.2 s": [700, 1_200, 900, 1_100],
    "beyond the deadline": [1_600, 5_000],
    "now and then": [300, 4_000, 700, 1_600],
}
AWAY = "away"


def trouble(how: str) -> Action:
    """Redis becomes slow, or goes away, for the rest of the test."""
    if how == AWAY:
        return act("redis_away", ms=45_000)
    return act("slow_redis", delays=LATE[how], ms=45_000)


def shown(client: SimulatedClient, session_id: str) -> list[int]:
    """The counted times that a client was shown, in order."""
    return [
        message["elapsed_ms"]
        for message in client.messages
        if message.get("session_id") == session_id and "elapsed_ms" in message
    ]


def end_of(client: SimulatedClient, session_id: str) -> dict[str, Any]:
    """A session's receipt, after a check of all times shown to clients."""
    found = shown(client, session_id)
    assert found == sorted(found), found
    (stopped,) = (one for one in client.messages if one["type"] == "stopped")
    receipt: dict[str, Any] = stopped["receipt"]
    assert found[-1] <= receipt["elapsed_ms"], (found, receipt)
    return receipt


@pytest.mark.parametrize("how", [*LATE, AWAY])
@pytest.mark.parametrize("seconds", [5, 6.5, 7, 10])
def test_lone_session_is_charged_the_whole_balance(
    lab: Laboratory, how: str, seconds: float
) -> None:
    """A lone session is charged the whole balance.

    The account has five to ten credits, and burns sixty a minute.
    """
    micros = int(seconds * 1_000_000)
    clients = run(
        lab,
        pay("cat9", micros),
        start("s1", kind="dear"),
        wait(1),
        trouble(how),
        wait(90),
    )
    receipt = end_of(clients[0], "s1")
    whole_ms = int(seconds) * 1_000
    assert (receipt["elapsed_ms"], receipt["reason"]) == (whole_ms, "limit")
    assert receipt["credits"] == str(int(seconds))
    (reached,) = (one for one in clients[0].messages if one["type"] == "limit_reached")
    assert reached["elapsed_ms"] == whole_ms
    assert reached["received_at"] == reached["stopped_at"]


@pytest.mark.parametrize("how", [*LATE, AWAY])
@pytest.mark.parametrize("second_after", [0.4, 2])
def test_two_sessions_are_charged_the_whole_balance(
    lab: Laboratory, how: str, second_after: float
) -> None:
    clients = run(
        lab,
        pay("cat9", 20_000_000),
        start("s1", kind="dear"),
        wait(second_after),
        start("s2", kind="dear"),
        wait(1),
        trouble(how),
        wait(120),
    )
    charged = sum(float(end_of(client, f"s{1 + number}")["credits"])
                  for number, client in enumerate(clients))  # fmt: skip
    assert charged <= 20
    assert charged >= 18


@pytest.mark.parametrize("how", [*LATE, AWAY])
def test_month_limit_is_not_passed(lab: Laboratory, how: str) -> None:
    clients = run(
        lab,
        act("limit", user="ann9", minutes=3, of_org=False),
        start("s1", user="ann9", kind="recording"),
        wait(150),
        trouble(how),
        wait(120),
    )
    receipt = end_of(clients[0], "s1")
    assert (receipt["minutes"], receipt["elapsed_ms"]) == (3, 180_000)


def test_lone_session_claims_little_when_rest_is_low(
    lab: Laboratory,
) -> None:
    versions = []

    def noted(performer: Any) -> None:
        told = performer.cluster.stepped

        def stepped(host: Any, step: Any, node: str, outcome: Any, alone: bool) -> None:
            versions.append((step.standing.phase.value, outcome.reply.session.grant.final))
            told(host, step, node, outcome, alone)

        performer.cluster.stepped = stepped

    outcome = lab.run(9, 0, started=noted, actions=[
        pay("cat9", 1_900_000), start("s1"), wait(130),
    ])  # fmt: skip
    assert outcome.failure is None, outcome.failure
    first, *minutes = [step for step in versions if step[0] == "active"]
    assert first == ("active", "credits")
    # The session records a warning and settles the end of a minute, and asks for nothing else.
    assert {final for _, final in minutes} == {"credits"}
    assert len(minutes) <= 3


def test_later_session_gets_share_of_rest(lab: Laboratory) -> None:
    clients = run(
        lab,
        pay("cat9", 1_000_000),
        start("s1"),
        wait(10),
        start("s2"),
        wait(90),
    )
    first, second = (end_of(client, f"s{1 + number}") for number, client in enumerate(clients))
    assert float(first["credits"]) + float(second["credits"]) == pytest.approx(1, abs=0.04)
    assert second["elapsed_ms"] >= 20_000


def test_spend_takes_what_it_needs_of_rest(lab: Laboratory) -> None:
    clients = run(
        lab,
        pay("cat9", 1_000_000),
        start("s1"),
        wait(10),
        act("transfer", node=NODE, kind="spend", user="cat9", entry="spend", micros=500_000),
        wait(60),
    )
    assert end_of(clients[0], "s1")["elapsed_ms"] == 30_000


assert KINDS["dear"].price_micros == 60_000_000


@pytest.mark.parametrize("wants", ["start", "spend"])
def test_no_refusal_before_holder_has_answered(lab: Laboratory, wants: str) -> None:
    """Nothing is refused before the holder has answered.

    The holder's answer to the recall is lost: enough is left, but no process can know it yet.
    """
    performers: list[Any] = []
    wanted = {
        "start": act("start", client="c2", node="node.1", user="cat9", kind="second", session="s2"),
        "spend": act(
            "transfer", node="node.1", kind="spend", user="cat9", entry="x", micros=100_000
        ),
    }[wants]
    actions = [
        pay("cat9", 1_000_000),
        act("serve", node="node.1"),
        start("s1"),
        wait(5),
        mishaps(NODE, "redis", ["lost", 10], ["lost", 10], ["lost", 10]),
        wanted,
        wait(5),
        act("again", node="node.1", entry="x"),
    ]
    outcome = lab.run(9, 0, actions=actions, started=performers.append)
    assert outcome.failure is None, outcome.failure
    (performer,) = performers
    if wants == "start":
        client = next(one for one in performer.world.clients if one.name == "c2")
        assert [one["code"] for one in client.messages if one["type"] == "error"] == ["unavailable"]
    else:
        (transfer,) = (
            one for one in performer.money_client.transfers.values() if one.kind == "spend"
        )
        assert transfer.state == "done", transfer  # asked again, the spend succeeds
        assert not performer.money_client.refusals


def test_messages_of_one_instant_arrive_in_order() -> None:
    """Messages of one instant arrive in order (seed 1200).

    A message that overtook another one kept all later ones from arriving.
    """
    told = [b"%d" % number for number in range(9)]
    heard: list[object] = []

    async def main(loop: VirtualLoop) -> None:
        line = RedisLink(lambda _: [], 1_500)
        line.delays = [600]
        listener = VirtualPubSub(line)
        await listener.subscribe("news")
        for data in told:
            listener.publish(b"news", data)
        loop.clock.now_ms += 300
        await loop.quiet()
        for kind in ["subscribe"] + len(told) * ["message"]:
            message = await listener.get_message(timeout=1)
            assert message is not None
            assert message["type"] == kind
            heard.append(message["data"])

    virtual.run(main)
    assert heard[1:] == told
