"""A later session gets the month's minutes that others merely hold."""

from typing import Any

import pytest

from tests.simulation.clients import SimulatedClient
from tests.simulation.driver import Laboratory
from tests.simulation.traces import act, run, start, wait

pytestmark = pytest.mark.usefixtures("quiet_logs")

SERVE = act("serve", node="node.1")


def elsewhere(session: str, user: str) -> Any:
    """A session without a price, which another process serves."""
    client = f"c-{session}"
    return act("start", client=client, node="node.1", user=user, kind="recording", session=session)


def counted(client: SimulatedClient) -> tuple[int, int]:
    """The minutes and the time on the receipt that a client received."""
    assert [one["code"] for one in client.messages if one["type"] == "error"] == []
    (stopped,) = (one for one in client.messages if one["type"] == "stopped")
    return stopped["receipt"]["minutes"], stopped["receipt"]["elapsed_ms"]


def test_later_session_gets_minute_not_begun(
    lab: Laboratory,
) -> None:
    """A later session gets a minute that the first has not begun.

    The first session runs alone, and was granted both minutes that are left.
    """
    clients = run(
        lab,
        act("limit", user="ann9", minutes=None, of_org=True),
        act("limit", user="ann9", minutes=2, of_org=False),
        start("s1", user="ann9", kind="recording"),
        wait(10),
        start("s2", user="ann9", kind="recording"),
        wait(90),
    )
    assert [counted(client) for client in clients] == [(1, 60_000), (1, 60_000)]


def test_minute_is_given_to_another_account_and_process(lab: Laboratory) -> None:
    clients = run(
        lab,
        act("limit", user="ann9", minutes=2, of_org=True),
        SERVE,
        start("s1", user="ann9", kind="recording"),
        wait(10),
        elsewhere("s2", "bob9"),
        wait(90),
    )
    assert [counted(client) for client in clients] == [(1, 60_000), (1, 60_000)]


def test_session_is_refused_when_every_minute_has_begun(lab: Laboratory) -> None:
    clients = run(
        lab,
        act("limit", user="ann9", minutes=None, of_org=True),
        act("limit", user="ann9", minutes=2, of_org=False),
        start("s1", user="ann9", kind="recording"),
        wait(70),
        start("s2", user="ann9", kind="recording"),
        wait(90),
    )
    assert counted(clients[0]) == (2, 120_000)
    assert [one.get("limit") for one in clients[1].messages if one["type"] == "error"] == [
        "member_minutes"
    ]


def test_session_recalled_at_minute_end_runs_on(lab: Laboratory) -> None:
    """The other session is granted its third minute, the last free one.

    The month has six minutes. One second later this session's second minute ends. This session
    gives back its own third minute, which it needs at once, and is granted it again.
    """
    clients = run(
        lab,
        act("limit", user="ann9", minutes=6, of_org=True),
        SERVE,
        start("s1", user="ann9", kind="recording"),
        wait(1),
        elsewhere("s2", "bob9"),
        wait(300),
    )
    assert [counted(client) for client in clients] == [(3, 180_000), (3, 180_000)]


def test_recalled_minute_stops_at_no_unreached_limit(
    lab: Laboratory,
) -> None:
    """A recalled minute stops no session at an unreached limit.

    From a simulated world: three sessions, two of them of one member, 1 s apart.
    """
    clients = run(
        lab,
        act("limit", user="bob9", minutes=20, of_org=True),
        start("s44", user="ann9", kind="recording"),
        wait(600),
        act("cut", client="c-s44"),
        SERVE,
        wait(30),
        start("s57", user="ann9", kind="recording"),
        start("s60", user="ann9", kind="recording"),
        wait(1),
        elsewhere("s62", "bob9"),
        act("limit", user="ann9", minutes=None, of_org=False),
        wait(330),
    )
    assert sum(minutes for minutes, _ in map(counted, clients[1:])) == 10
